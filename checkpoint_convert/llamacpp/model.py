"""A model as GGUF's metadata describes it, and how its tensors are stored.

The keys and the arithmetic are those of llama.cpp's convert_hf_to_gguf.py for the architectures `jais` and `llama`.
llama.cpp has no place for muP's two factors, so they are multiplied into the embedding and the output head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from gguf import GGML_QUANT_VERSION, LlamaFileType

from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.convert import check_convertible, public_keys
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.gguf import GgufTensor, Value, encode, fits
from checkpoint_convert.formats.tensors import TensorHeader, np_dtype
from checkpoint_convert.mapping.rules import JAIS, architecture_of

Type = Literal["f32", "f16", "q8_0", "q4_0"]
TYPES: tuple[Type, ...] = ("f32", "f16", "q8_0", "q4_0")
_FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_MAX_ALIBI_BIAS = 8.0  # of which ALiBi's slopes follow, as mapping/plan.py has checked that they do


def check_expressible(config: DecoderConfig) -> None:
    """Raise ConversionError when llama.cpp cannot compute what this model computes."""
    check_convertible(config)
    if architecture_of(config) is not JAIS:
        return
    if config.pos_scaling_factor != 1:
        raise ConversionError(
            f"model.pos_scaling_factor = {config.pos_scaling_factor:g}: GGUF has no place for scaled ALiBi positions; "
            "llama.cpp would compute other logits"
        )
    if not math.isclose(config.attention_scale, 1 / config.head_dim, rel_tol=1e-12):
        raise ConversionError(
            f"q.k is multiplied by {config.attention_scale:.6g} (scale_qk_dot_by_d): llama.cpp's jais always uses "
            f"1/{config.head_dim}, so it would compute other logits"
        )


def hyperparameters(config: DecoderConfig) -> dict[str, Value]:
    """The keys that llama.cpp computes with."""
    jais = architecture_of(config) is JAIS
    arch = architecture_of(config).name
    common: dict[str, Value] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.filter_size,
        "attention.head_count": config.num_heads,
    }
    if jais:
        own: dict[str, Value] = {
            "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
            "attention.max_alibi_bias": _MAX_ALIBI_BIAS,
        }
    else:
        own = {
            "attention.head_count_kv": config.num_kv_groups,
            "attention.layer_norm_rms_epsilon": float(config.layer_norm_epsilon),
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
            "rope.freq_base": float(config.rope_theta),
            "rope.dimension_count": config.head_dim,
            "vocab_size": config.vocab_size,
        }
        if config.pos_scaling_factor != 1:
            own |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.pos_scaling_factor)}
    return {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in (common | own).items()}


def general(type_: Type, name: str, licence: str | None) -> dict[str, Value]:
    """The keys that say what a file is."""
    keys: dict[str, Value] = {"general.type": "model", "general.name": name}
    if licence is not None:
        keys["general.license"] = licence
    return keys | {
        "general.file_type": int(_FILE_TYPES[type_]),
        "general.quantization_version": int(GGML_QUANT_VERSION),
    }


# ---- tensors --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoding:
    """How the values of a tensor become those of a GGUF file."""

    source: TensorHeader
    """What is read."""
    factor: float
    """What the values are multiplied by."""
    tensor: GgufTensor

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Rows of the source, or elements of a vector, as the bytes uint8 [rows, bytes of a row].

        Raises:
            ConversionError: the element type cannot represent a value.
        """
        scaled = self.scaled(values)
        kind = self.tensor.kind
        lost = None
        if kind == "F32":
            if self.factor != 1 or values.dtype == np.float64:
                lost = np.isinf(scaled) & np.isfinite(values)
        elif kind == "F16":
            with np.errstate(over="ignore"):
                scaled = scaled.astype(np.float16, copy=False)
            lost = np.isinf(scaled) & np.isfinite(values)
        else:
            lost = ~np.isfinite(scaled)
        if lost is not None and lost.any():
            worst = float(values[lost][0])
            raise ConversionError(
                f"{self.tensor.name} has {worst:g}, which {kind.lower()} cannot represent"
                + (f" when it is multiplied by {self.factor:g}" if self.factor != 1 else "")
            )
        return encode(scaled, kind)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """The values times the factor, in float32, or in float16 where they are stored so, as the script has them."""
        with np.errstate(over="ignore", invalid="ignore"):
            if values.dtype not in (np.float16, np.float32):
                values = values.astype(np.float32)
            if self.factor == 1:
                return values
            return (values.astype(np.float32, copy=False) * np.float32(self.factor)).astype(values.dtype, copy=False)


def encodings(config: DecoderConfig, type_: Type) -> Callable[[TensorHeader], Encoding]:
    """The encoding of each tensor of a model.

    Norms and biases are float32. Where a row is no whole number of blocks, the tensor is float16, as in llama.cpp's
    script. With q4_0 the head has q8_0, since it moves the logits most; llama.cpp gives it 6 bits, which the package
    `gguf` cannot write.
    """
    keys = public_keys(config)
    factors: dict[str, float] = {}
    if architecture_of(config) is JAIS:
        head = keys["mup_output_alpha"] * keys["mup_width_scale"]
        factors = {_EMBEDDING: keys["mup_embeddings_scale"], _HEAD: head}

    def of(header: TensorHeader) -> Encoding:
        kind = type_.upper()
        if len(header.shape) < 2 or not header.name.endswith(".weight"):
            kind = "F32"
        elif type_ == "q4_0" and header.name == _HEAD:
            kind = "Q8_0"
        if not fits(kind, header.shape):
            kind = "F16"
        return Encoding(header, factors.get(header.name, 1.0), GgufTensor(header.name, header.shape, kind))

    return of


def values_of(encoding: Encoding, stored: np.ndarray) -> np.ndarray:
    """Bits of rows of the source in its element type."""
    return stored.view(np_dtype(encoding.source.dtype))
