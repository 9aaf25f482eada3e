"""Tiny models and batches that the model's tests share."""

import torch

from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel

# muP set B of the family (590m to 13b) at a base width of 16.
_MUP = {
    "mup_base_hidden_size": 16,
    "mup_base_filter_size": 42.0,
    "embeddings_scale": 9.1705785,
    "output_logits_alpha": 1.0951835,
    "scale_qk_dot_by_d": True,
}


def jais_section(**changes):
    """A Jais `model:` section: ALiBi, LayerNorm, biases, muP, tied head."""
    section = {
        "name": "jais",
        "vocab_size": 97,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_heads": 12,
        "filter_size": 128,
        "max_position_embeddings": 24,
        "position_embedding_type": "alibi",
        "nonlinearity": "swiglu",
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "layer_norm_epsilon": 1e-5,
        "share_embedding_weights": True,
        "use_bias_in_output": False,
        "initializer": {"name": "truncated_normal", "mean": 0.0, "std": 0.0867},
        "embedding_initializer": {"name": "truncated_normal", "mean": 0.0, "std": 0.0867},
        **_MUP,
    }
    section.update(changes)
    return {key: value for key, value in section.items() if value is not None}


def llama_section(kv_groups=None, **changes):
    """A Llama `model:` section: rotary, RMSNorm, no biases, untied head, grouped queries on request."""
    section = {
        "name": "llama",
        "vocab_size": 97,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_heads": 12,
        "filter_size": 128,
        "max_position_embeddings": 24,
        "position_embedding_type": "rotary",
        "rope_theta": 10000.0,
        "nonlinearity": "swiglu",
        "norm_type": "rmsnorm",
        "layer_norm_epsilon": 1e-5,
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "share_embedding_weights": False,
        "use_ffn_bias": False,
        "use_projection_bias_in_attention": False,
        "use_ffn_bias_in_attention": False,
    }
    section.update(changes)
    section.setdefault("rotary_dim", section["hidden_size"] // section["num_heads"])
    if kv_groups is not None:
        section["attention_module"] = "multiquery_attention"
        section["extra_attention_params"] = {"num_kv_groups": kv_groups}
    return section


def sharp_model(section):
    """A model in evaluation mode whose attention is far from uniform, so that a wrong mask or position shows."""
    torch.manual_seed(0)
    model = LanguageModel(DecoderConfig.from_section(section))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() == 2:
                parameter.mul_(4)
    return model.eval()


def batch_of(config, *, packed, seed=0, batch=3):
    """A batch of int32 [B, L] tensors; packed rows hold documents of several lengths and a padded tail."""
    generator = torch.Generator().manual_seed(seed)
    length = config.max_position_embeddings
    ids = torch.randint(1, config.vocab_size, (batch, length), generator=generator, dtype=torch.int32)
    rows = {
        "input_ids": ids,
        "labels": torch.randint(1, config.vocab_size, (batch, length), generator=generator, dtype=torch.int32),
        "attention_mask": torch.ones_like(ids),
    }
    rows["attention_mask"][0, : length // 4] = 0
    if packed:
        span, position = torch.zeros_like(ids), torch.zeros_like(ids)
        for row in range(batch):
            start = 0
            for size in [(9, 8, 5), (3, 20), (24,)][row % 3]:
                position[row, start : start + size] = torch.arange(size, dtype=torch.int32)
                span[row, start : start + size] = torch.arange(size - 1, -1, -1, dtype=torch.int32)
                start += size
            rows["attention_mask"][row, start:] = 0
        rows["attention_span"], rows["position_ids"] = span, position
    return rows
