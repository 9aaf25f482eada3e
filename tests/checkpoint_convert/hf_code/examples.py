"""Tiny Jais models, the plain formula that they are checked against, and a directory to load them from."""

import json
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from checkpoint_convert.configs.convert import AUTO_MAP
from checkpoint_convert.hf_code.configuration_jais import JAISConfig
from checkpoint_convert.hf_code.modeling_jais import JAISLMHeadModel
from checkpoint_convert.release import CODE_FILES

CODE = Path(__file__).parents[3] / "checkpoint_convert" / "hf_code"
MUP_OFF = {
    "mup_embeddings_scale": 1.0,
    "mup_output_alpha": 1.0,
    "mup_width_scale": 1.0,
    "mup_scale_qk_dot_by_d": False,
}
MUP_B = {
    "mup_embeddings_scale": 9.1705785388303,
    "mup_output_alpha": 1.0951834981576898,
    "mup_width_scale": 0.1,
    "mup_scale_qk_dot_by_d": True,
}


def tiny_config(**changes) -> JAISConfig:
    shape = {
        "vocab_size": 61,
        "n_positions": 64,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 12,
        "n_inner": 80,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        **MUP_B,
    }
    return JAISConfig(**{**shape, **changes})


# The name that this transformers gives the cache in its outputs.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


def tiny_model(
    seed: int = 0, model_class=JAISLMHeadModel, attention: str = "eager", spread: float = 0.2, **changes
) -> torch.nn.Module:
    """A model of random weights in eval mode: no bias is 0 and no norm is 1, so that an ignored tensor is noticed."""
    torch.manual_seed(seed)
    config = tiny_config(**changes)
    model = model_class._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("slopes"):
                continue
            centre = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + spread * torch.randn_like(parameter))
    return model.eval()


def talkative_jais(attention: str = "eager") -> JAISLMHeadModel:
    """A model that generates many different tokens, each after all those before; with a tied head it repeats itself."""
    return tiny_model(seed=2, attention=attention, spread=0.3, tie_word_embeddings=False)


def talkative_llama(attention: str = "eager") -> LlamaForCausalLM:
    """The same of transformers' own Llama, which the adapted models of the family are released as."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=12,
        num_key_value_heads=4,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=attention).eval()


def random_ids(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    """Ids in [1, 61): never 0, which is padding and end of text."""
    return torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def slopes_by_hand(n_head: int) -> list[float]:
    """The published slopes of the head counts of the Jais family: a power of two, then what fills up the rest."""
    table = {
        8: [2.0 ** -(i + 1) for i in range(8)],
        12: [2.0 ** -(i + 1) for i in range(8)] + [2.0 ** -(i + 0.5) for i in range(4)],
        20: [2.0 ** (-(i + 1) / 2) for i in range(16)] + [2.0 ** (-(2 * i + 1) / 4) for i in range(4)],
        40: [2.0 ** (-(i + 1) / 4) for i in range(32)] + [2.0 ** (-(2 * i + 1) / 8) for i in range(8)],
        56: [2.0 ** (-(i + 1) / 4) for i in range(32)] + [2.0 ** (-(2 * i + 1) / 8) for i in range(24)],
    }
    return table[n_head]


def plain_logits(model: JAISLMHeadModel, row: torch.Tensor, slope_divisor: float = 1.0) -> torch.Tensor:
    """The logits [L, V] of one row of ids in float64, straight from the equations: one head and one query at a time."""
    config = model.config
    weight = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
    heads, size = config.n_head, config.n_embd // config.n_head
    scale = 1 / size if config.mup_scale_qk_dot_by_d else 1 / size**0.5

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + config.layer_norm_epsilon).sqrt()
        return centred / deviation * weight[f"{name}.weight"] + weight[f"{name}.bias"]

    def affine(x, name):
        return x @ weight[f"{name}.weight"] + weight[f"{name}.bias"]

    h = weight["transformer.wte.weight"][row] * config.mup_embeddings_scale
    for layer in range(config.n_layer):
        block = f"transformer.h.{layer}"
        qkv = affine(norm(h, f"{block}.ln_1"), f"{block}.attn.c_attn")
        mixed = torch.zeros_like(h)
        for head, slope in enumerate(slopes_by_hand(heads)):
            q, k, v = (qkv[:, i * config.n_embd + head * size :][:, :size] for i in range(3))
            for i in range(len(row)):
                distances = i - torch.arange(i + 1, dtype=torch.float64)
                scores = k[: i + 1] @ q[i] * scale - slope / slope_divisor * distances
                chances = scores.exp() / scores.exp().sum()
                mixed[i, head * size : (head + 1) * size] = chances @ v[: i + 1]
        h = h + affine(mixed, f"{block}.attn.c_proj")
        x = norm(h, f"{block}.ln_2")
        gate = affine(x, f"{block}.mlp.c_fc2")
        h = h + affine(affine(x, f"{block}.mlp.c_fc") * gate / (1 + (-gate).exp()), f"{block}.mlp.c_proj")
    head = weight["lm_head.weight"]
    return norm(h, "transformer.ln_f") @ head.T * (config.mup_output_alpha * config.mup_width_scale)


def write_release_code(directory: Path) -> None:
    """Puts the remote code into a saved model and names it in its config.json, as a release does."""
    for name in CODE_FILES:
        shutil.copy(CODE / name, directory)
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": AUTO_MAP}))
