"""Tiny checkpoints of both families, as a trainer would write them, and the published dimensions of all models."""

import ml_dtypes
import numpy as np
import torch

from cerebras_jais.checkpoint import save_checkpoint
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from tests import published
from tests.cerebras_jais.model.examples import jais_section, llama_section

VARIANTS = {
    "jais-12-heads": jais_section(),
    "jais-20-heads-untied": jais_section(num_heads=20, hidden_size=80, share_embedding_weights=False),
    "jais-40-heads": jais_section(num_heads=40, hidden_size=80, pos_scaling_factor=2.0),
    "jais-56-heads": jais_section(num_heads=56, hidden_size=112),
    "jais-no-mup": jais_section(
        mup_base_hidden_size=None,
        mup_base_filter_size=None,
        output_logits_alpha=None,
        embeddings_scale=None,
        scale_qk_dot_by_d=None,
    ),
    "jais-deprecated-mup": jais_section(
        mup_base_hidden_size=None, mup_base_filter_size=None, output_logits_alpha=None, output_logits_scale=0.365
    ),
    "llama-12-heads": llama_section(),
    "llama-20-heads-tied": llama_section(num_heads=20, hidden_size=80, share_embedding_weights=True),
    "llama-40-heads-grouped": llama_section(num_heads=40, hidden_size=160, kv_groups=8, rope_theta=500000.0),
    "llama-56-heads-grouped-tied": llama_section(
        num_heads=56, hidden_size=224, kv_groups=7, share_embedding_weights=True
    ),
    "llama-one-group": llama_section(kv_groups=1),
    "llama-biases": llama_section(
        use_ffn_bias=True, use_projection_bias_in_attention=True, use_ffn_bias_in_attention=True, pos_scaling_factor=4.0
    ),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_model(section, seed=0):
    """A model whose every weight is random: no norm is 1 and no bias is 0, so that an ignored tensor is noticed."""
    torch.manual_seed(seed)
    model = LanguageModel(DecoderConfig.from_section(section)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("slopes"):
                centre = 1.0 if ("norm" in name or "ln_f" in name) and name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
    return model


def to_numpy(tensor):
    """A tensor as numpy, bfloat16 as ml_dtypes.bfloat16."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def state_of(model, dtype=torch.float32):
    """The state dict as numpy in an element type; slopes stay float32, as trainers leave them."""
    return {
        name: to_numpy(tensor if name.endswith("slopes") else tensor.to(dtype))
        for name, tensor in model.state_dict().items()
    }


def write_checkpoint(path, section, state, *, with_metadata=True, fit=None):
    """A checkpoint such as a trainer leaves behind: model, optimizer state, step, metadata.

    `fit` is the section of that name in the trainer YAML that the metadata has.
    """
    rest = {"optimizer": {"state": {"0": {"exp_avg": np.ones(3, np.float32)}}}, "global_step": 20}
    if with_metadata:
        params = {"trainer": {"init": {"model": section}, **({"fit": fit} if fit else {})}}
        rest["__metadata__"] = [{"version": "2.10.0", "model_name": "JAISModel", "params": params}]
    save_checkpoint(path, {"model": state, **rest})
    return path


def jais_checkpoint(directory, **changes):
    """The checkpoint `c.mdl` of a small Jais model of random weights; `changes` are to its section."""
    section = jais_section(**changes)
    return write_checkpoint(directory / "c.mdl", section, state_of(random_model(section)))


def listing(directory):
    """The names in a directory, sorted."""
    return sorted(p.name for p in directory.iterdir())


def published_section(row):
    """The `model:` section of a published model."""
    sizes = {
        "vocab_size": row.vocabulary,
        "hidden_size": row.hidden,
        "num_hidden_layers": row.layers,
        "num_heads": row.heads,
        "filter_size": row.filter_size,
        "max_position_embeddings": row.context,
    }
    if row.mup is None:
        return llama_section(kv_groups=None if row.kv_heads == row.heads else row.kv_heads, **sizes)
    embeddings_scale, alpha = row.mup
    return jais_section(
        embeddings_scale=embeddings_scale,
        output_logits_alpha=alpha,
        mup_base_hidden_size=256,
        mup_base_filter_size=row.filter_size * 256 / row.hidden,
        **sizes,
    )


PUBLISHED = {name: (published_section(row), row.parameters) for name, row in published.MODELS.items()}
"""Name -> (`model:` section, parameters with ALiBi slopes counted and a tied head counted once)."""
