"""What a Jais release is to vLLM: its config, its slopes by rank, and its tensors as the modules of `model` take them.

The names, shapes and keys of releases are those that the converter reads (checkpoint_convert), those of the first Jais
code included. Nothing here imports vLLM.

M hidden size, F filter size, H heads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional

from cerebras_jais.errors import UserError
from cerebras_jais.model.alibi import alibi_slopes
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.jais import jais_section
from checkpoint_convert.errors import first_few
from checkpoint_convert.mapping.rules import JAIS, expected_tensors, grouped

SLOPES = "transformer.relative_pe.slopes"
HEAD = "lm_head.weight"
# Linear layers that GPT-2's code stores as [in, out]; vLLM's modules have [out, in].
_STORED_TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc2?)\.weight$")
# SwiGLU is silu(c_fc2(x)) * c_fc(x): vLLM's merged layer holds the gate first.
_SWIGLU = re.compile(r"\.mlp\.(c_fc2?)\.")
_SHARD = {"c_fc2": 0, "c_fc": 1}
# Kernels want rows of whole cache lines and vector registers.
_ALIGNED = 16


class ReleaseError(UserError):
    """A release that vLLM cannot serve; the message names the key or tensor and says what to do."""


def release_config(keys: Mapping[str, Any]) -> DecoderConfig:
    """The model that the keys of a config.json describe, whichever names they have.

    Raises:
        UserError: the model is not of the family, or its slopes change with the length of the text.
    """
    scaling = keys.get("alibi_scaling")
    if isinstance(scaling, Mapping) and scaling.get("train_seq_len") is not None:
        raise ReleaseError(
            "config.json: alibi_scaling with train_seq_len divides the slopes by a factor that follows the length of "
            'the text, and vLLM has fixed slopes; set alibi_scaling to null or to {"type": "linear", "factor": F}'
        )
    section, _ = jais_section(keys)
    return DecoderConfig.from_section(section)


def slopes_of_rank(config: DecoderConfig, rank: int, ranks: int) -> list[float]:
    """ALiBi's slopes of the heads of one of `ranks` processes of tensor parallel, interpolated as the config says."""
    heads = config.num_heads // ranks
    slopes = [slope / config.pos_scaling_factor for slope in alibi_slopes(config.num_heads)]
    return slopes[rank * heads : (rank + 1) * heads]


def aligned_filter(filter_size: int, ranks: int) -> int:
    """The filter size rounded up so that it divides by `ranks` into parts that kernels like.

    19,114, the filter size of the 30B models, does not divide by 4. The columns added are zeros, and so is what they
    add: silu(0) * 0.
    """
    unit = _ALIGNED * ranks
    return -(-filter_size // unit) * unit


def target_of(name: str) -> tuple[str, int | None]:
    """The parameter of `model` that a tensor of a release fills, and which part of it where it fills one of several."""
    found = _SWIGLU.search(name)
    if found is None:
        return name, None
    return _SWIGLU.sub(".mlp.gate_up_proj.", name), _SHARD[found[1]]


def prepared_weights(
    weights: Iterable[tuple[str, torch.Tensor]],
    config: DecoderConfig,
    *,
    filter_size: int,
    is_quantised: bool,
    is_elsewhere: Callable[[str], bool] = lambda parameter: False,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a release, checked, in the layout [out, in] and with F padded; without the slopes.

    Args:
        weights: name -> tensor, as stored.
        filter_size: F of the modules, at least that of the config.
        is_quantised: whether the release was quantised in advance; its tensors of other forms pass as stored.
        is_elsewhere: whether a parameter belongs to another process (pipeline parallel), which checks for it.

    Raises:
        ReleaseError: a tensor is not part of the model or has another shape, the slopes are not those of ALiBi, or, at
            the end, one is missing.
    """
    shapes = expected_tensors(config, "hugging_face")
    seen: set[str] = set()
    for name, tensor in weights:
        if JAIS.ignored.fullmatch(name):
            continue
        if name not in shapes and not is_quantised:
            raise ReleaseError(f"{name}: is not part of the model that config.json describes; check n_layer")
        fits = name in shapes and tuple(tensor.shape) == shapes[name]
        if name in shapes and not fits and not is_quantised:
            raise ReleaseError(
                f"{name}: has shape {list(tensor.shape)}, but {list(shapes[name])} follows from config.json; give the "
                "config.json that belongs to the weights"
            )
        seen.add(name)
        if name == SLOPES:
            check_slopes(tensor, config.num_heads)
        elif name != HEAD or not config.share_embedding_weights:
            is_plain = fits and tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)
            yield name, _in_layout_of_modules(name, tensor, filter_size - config.filter_size) if is_plain else tensor
    _check_complete(shapes, seen, config, is_quantised, is_elsewhere)


def _in_layout_of_modules(name: str, tensor: torch.Tensor, added: int) -> torch.Tensor:
    if _STORED_TRANSPOSED.search(name):
        tensor = tensor.t()
    if added and _SWIGLU.search(name):  # [F, M], or [F]
        tensor = functional.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, added))
    elif added and name.endswith(".mlp.c_proj.weight"):  # [M, F]
        tensor = functional.pad(tensor, (0, added))
    return tensor


def check_slopes(stored: torch.Tensor, num_heads: int) -> None:
    """Raise ReleaseError unless stored slopes [H, 1] are ALiBi's, in float32 or rounded to a half precision.

    vLLM gets exact slopes, from the number of heads: an error in one grows with the distance that it multiplies.
    """
    exact = torch.tensor(alibi_slopes(num_heads))
    found = stored.detach().cpu().float().flatten()
    rounded = [exact.bfloat16(), exact.half(), exact.half().bfloat16()]
    if not torch.allclose(found, exact, rtol=1e-6, atol=0) and not any((found == r.float()).all() for r in rounded):
        raise ReleaseError(
            f"{SLOPES}: are not the slopes of ALiBi for {num_heads} heads, and vLLM has no others; remove the tensor "
            "if it is damaged (they follow from n_head)"
        )


def _check_complete(
    shapes: Iterable[str],
    seen: set[str],
    config: DecoderConfig,
    is_quantised: bool,
    is_elsewhere: Callable[[str], bool],
) -> None:
    optional = {SLOPES, HEAD} if config.share_embedding_weights else {SLOPES}
    modules = {name.rpartition(".")[0] for name in seen}

    def is_there(name: str) -> bool:
        return name in seen or (is_quantised and name.rpartition(".")[0] in modules)

    missing = [n for n in shapes if n not in optional and not is_there(n) and not is_elsewhere(target_of(n)[0])]
    if missing:
        hint = "set tie_word_embeddings: true if the head is the embedding" if missing == [HEAD] else "fetch it again"
        raise ReleaseError(f"the weights lack {first_few(grouped(missing), '; ')}; {hint}")
