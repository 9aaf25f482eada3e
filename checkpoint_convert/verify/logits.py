"""Check that a release computes what its checkpoint computes: both run the same prompts, compared layer by layer.

Both models run unchanged, in float32. A Jais release runs its own code if that is a version of this package's; a Llama
release runs transformers' Llama (release_code.py). Weights are read module by module when they are needed
(streamed_weights.py): a tied weight once for each of its modules, every other weight once. The reference path runs
first and writes its values to a temporary file; the values of the release are compared with these.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from cerebras_jais.checkpoint.hdf5.isolate import Descriptions
from cerebras_jais.config.yaml_file import ConfigFile
from cerebras_jais.encoding import encode_texts, reading_text_as_data
from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.tensors import state_key
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.release_directory import CONFIG, TOKENIZER
from checkpoint_convert.formats.tensors import UNIT_ROUNDOFF, Tensor
from checkpoint_convert.mapping.plan import make_plan
from checkpoint_convert.mapping.rules import JAIS, LLAMA, architecture_of, rules, ties
from checkpoint_convert.open_model import Model, opening, weights_of
from checkpoint_convert.streaming.run import Progress
from checkpoint_convert.verify.release_code import ReleaseCode, classes_of, read_code
from checkpoint_convert.verify.streamed_weights import converted, find_weights, load, stream_weights

# Arabic and English text, digits, tashkeel and code, of different lengths, within the smallest context.
PROMPTS = (
    "ما هي عاصمة الإمارات العربية المتحدة؟",
    "The highest mountain in the Emirates is",
    "العِلْمُ نُورٌ، وَالجَهْلُ ظَلَامٌ، وفي عام ٢٠٢٤",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Translate to Arabic: peace. الترجمة:",
)

# How many unit roundoffs, times sqrt(1 + depth), the largest difference may be of the largest magnitude.
#
# A layer with rounded weights adds a random error of a few roundings, relative to what it adds to the residual stream.
# It also propagates the error of its input: a norm keeps the relative error, the product in SwiGLU adds the relative
# errors of its two factors. If all layers add alike, the energy of the error after n layers is
# E(n) = E(n - 1) * (n + 1) / (n - 1) + const. It grows as n^2 and the energy of the stream as n, so the relative error
# grows as sqrt(n).
#
# Measured on random models of both families, 2, 8 and 24 layers, hidden sizes 48 and 256, in units of
# roundoff * sqrt(1 + depth). With matrices that keep the size of their input: at most 2.4 for bfloat16 and float16, and
# 7.3 for float32, where only the order of summation differs (its error grows with the width of a matrix). With matrices
# that double it, so that softmax saturates and 24 layers are chaotic: 29, 26 and 65.
_ROUNDINGS = {"float32": 64.0, "float16": 6.0, "bfloat16": 6.0}
_SPREAD_IDS = 64  # ids of a prompt for a release without a tokenizer


@dataclass(frozen=True)
class _ComparedModules:
    """Names of the modules after which the two sides are compared."""

    embedding: str
    layers: str
    norm: str
    ignored: Callable[[str], object] = lambda name: False
    """Whether a release may have a tensor of this name that the model does not read."""


_REFERENCE = _ComparedModules(state_key("drop_embd"), state_key("transformer_decoder.layers"), state_key("ln_f"))
_RELEASE = {
    JAIS.name: _ComparedModules("transformer.drop", "transformer.h", "transformer.ln_f", JAIS.ignored.fullmatch),
    LLAMA.name: _ComparedModules("model.embed_tokens", "model.layers", "model.norm", LLAMA.ignored.fullmatch),
}


@dataclass(frozen=True)
class LayerDifference:
    """How much two models differ after one module."""

    name: str
    """ "embedding" (scaled), "layer 0" and so on, numbered as in tensor names, "final norm", "logits"."""
    largest_difference: float
    """Largest absolute difference of any value."""
    largest_magnitude: float
    """Largest absolute value of the reference path."""
    tolerance: float
    """Largest absolute difference that rounding can explain."""

    @property
    def departs(self) -> bool:
        """Whether the difference is larger than the tolerance, or not a number."""
        return not self.largest_difference <= self.tolerance


@dataclass(frozen=True)
class LogitsReport:
    """How much a checkpoint and a release differ, layer by layer, in the order of computation."""

    prompts: int
    positions: int
    """Number of tokens whose values were compared."""
    rounded_to: str
    """Element type whose rounding the tolerances allow: the coarsest one among the weights that the two sides store in
    different types; "float32" where all types are the same."""
    layers: tuple[LayerDifference, ...]
    same_choice: int
    """Positions at which both models have the same most likely token."""

    @property
    def first_departure(self) -> str | None:
        """Name of the first layer that differs by more than its tolerance, or None."""
        return next((layer.name for layer in self.layers if layer.departs), None)

    @property
    def largest_difference(self) -> float:
        """Largest absolute difference of any logit."""
        return self.layers[-1].largest_difference


def relative_tolerance(rounded_to: str, depth: int) -> float:
    """Largest difference that rounding can explain, relative to the largest magnitude in the same layer.

    Args:
        rounded_to: "float32", "float16" or "bfloat16", as in LogitsReport.
        depth: number of comparisons before this one: about the number of layers already computed.
    """
    return _ROUNDINGS[rounded_to] * UNIT_ROUNDOFF[rounded_to] * math.sqrt(1 + depth)


def compare_logits(
    checkpoint: str | Path,
    release: str | Path,
    *,
    config: str | Path | ConfigFile | Mapping[str, Any] | None = None,
    prompts: Sequence[str] = PROMPTS,
    trust_release_code: bool = False,
    allow_pickle: bool = False,
    progress: Progress = lambda done, total: None,
    descriptions: Descriptions | None = None,
) -> LogitsReport:
    """Run prompts through the reference path and through transformers, both in float32, and compare layer by layer.

    Rows of the embedding that no prompt uses are not compared.

    Args:
        checkpoint: the .mdl file.
        release: the Hugging Face directory; its tokenizer encodes the prompts. A release without one gets evenly spaced
            ids instead.
        config: a trainer YAML, or a `model:` section; None takes the config stored in the checkpoint.
        prompts: texts; each is cut to the context of the model.
        trust_release_code: run the code in the release even if it is not a version of this package's.
        allow_pickle: whether the release's weights in pickle files may be read; no code in them is run.
        progress: called as weights are read.
        descriptions: a child that was started with the .mdl file among others; None starts one where it is needed.

    Raises:
        UserError: a file cannot be read, code is not trusted, the models cannot be compared (missing tensors, other
            sizes), or values are not finite, because a difference from NaN means nothing.
    """
    checkpoint, release = Path(checkpoint), Path(release)
    section = Path(config) if isinstance(config, str) else config
    with opening(checkpoint, config=section, descriptions=descriptions) as opened:
        return _compare(opened, opened.tensors, release, prompts, trust_release_code, allow_pickle, progress, None)


def compare_with_reference(
    release: str | Path,
    *,
    prompts: Sequence[str] = PROMPTS,
    trust_release_code: bool = False,
    allow_pickle: bool = False,
    progress: Progress = lambda done, total: None,
) -> LogitsReport:
    """The same for a release alone: the reference path computes with the weights that `to-cerebras` would write.

    Args and errors are those of `compare_logits`.
    """
    release = Path(release)
    with opening(release, allow_pickle=allow_pickle) as opened:
        plan = make_plan(opened.config, opened.side, opened.tensors)
        return _compare(
            opened, converted(plan), release, prompts, trust_release_code, allow_pickle, progress, "float32"
        )


def _compare(
    opened: Model,
    tensors: Mapping[str, Tensor],
    release: Path,
    prompts: Sequence[str],
    trust_release_code: bool,
    allow_pickle: bool,
    progress: Progress,
    rounded_to: str | None,
) -> LogitsReport:
    """Compare a model on the reference path with a release in transformers.

    Args:
        opened: the model of the reference path.
        tensors: its tensors by their Cerebras names without the leading `model.`.
        rounded_to: element type whose rounding the tolerances allow; None finds it from the types of the two sides.
    """
    with (
        _scratch_file() as scratch,
        torch.inference_mode(),
        release_model(read_code(release), trust_release_code) as (theirs, modules),
    ):
        with torch.device("meta"):
            ours = LanguageModel(opened.config).eval()
        _check_sizes(release, ours.config, theirs.config)
        our_ties = {state_key(name): state_key(first) for name, first in ties(ours.config, "cerebras").items()}
        stored = {state_key(name): tensor for name, tensor in tensors.items()}
        our_weights = find_weights(opened.path, ours, stored, our_ties)
        their_weights = find_weights(
            release, theirs, weights_of(release, allow_pickle), release_ties(theirs), modules.ignored
        )

        context = min(ours.config.max_position_embeddings, theirs.config.max_position_embeddings)
        rows = prompt_ids(release, prompts, ours.config.vocab_size, context)
        ids_BL, real_BL = _batch(rows)
        ours.check_token_ids(ids_BL)

        total = sum(source.nbytes for source in (*our_weights.values(), *their_weights.values()))

        def report(nbytes: int) -> None:
            progress(nbytes, total)

        stream_weights(ours, our_weights, report)
        stream_weights(theirs, their_weights, report)
        if architecture_of(ours.config) is JAIS:
            # The only weight that is used without a call of its module: one number per head, which stays in memory.
            helper = state_key("embedding_layer.position_embed_helper")
            load(ours.get_submodule(helper), {"slopes": our_weights[f"{helper}.slopes"]}, report)

        def keep(name: str, x_BLE: torch.Tensor) -> None:
            scratch.write(_finite(opened.path, name, x_BLE[real_BL]).numpy().data)

        _observe(ours, _REFERENCE, keep)
        keep("logits", ours.logits(ids_BL))

        scratch.seek(0)
        rounded_to = rounded_to or _rounded_to(ours.config, our_weights, their_weights)
        layers: list[LayerDifference] = []
        same_choice = 0

        def compare(name: str, x_BLE: torch.Tensor) -> None:
            nonlocal same_choice
            theirs_PE = _finite(release, name, x_BLE[real_BL].float())
            ours_PE = torch.empty_like(theirs_PE)
            ours_PE.numpy().data.cast("B")[:] = scratch.read(ours_PE.nbytes)
            magnitude = ours_PE.abs().max().item()
            bound = relative_tolerance(rounded_to, len(layers)) * magnitude
            layers.append(LayerDifference(name, (ours_PE - theirs_PE).abs().max().item(), magnitude, bound))
            same_choice = int((ours_PE.argmax(-1) == theirs_PE.argmax(-1)).sum())  # the last call is for the logits

        _observe(theirs, modules, compare)
        with transformers_errors(release):
            logits_BLV = theirs(input_ids=ids_BL, use_cache=False).logits
        compare("logits", logits_BLV)
    return LogitsReport(len(rows), int(real_BL.sum()), rounded_to, tuple(layers), same_choice)


# ---- the two models, without weights --------------------------------------------------------------------------------


@contextmanager
def release_model(code: ReleaseCode, trust: bool) -> Iterator[tuple[Any, _ComparedModules]]:
    """The model of a release, its weights on the meta device; and the names of its compared modules."""
    from accelerate import init_empty_weights
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    kind = code.config.get("model_type")
    if kind not in _RELEASE:
        raise ConversionError(f"{code.release / CONFIG}: model_type is {kind!r}; only 'jais' and 'llama' are supported")
    # The classes are called directly, because transformers' Auto classes run any code that a config names. Keys that
    # choose an implementation are removed, because one may name a kernel that transformers downloads and runs.
    keys = {key: value for key, value in code.config.items() if "_implementation" not in key}
    with ExitStack() as stack:
        with transformers_errors(code.release):
            config_class, model_class = stack.enter_context(classes_of(code, trust=trust))
            with init_empty_weights(include_buffers=False):
                config = config_class.from_dict(keys)
                model = model_class._from_config(config, dtype=torch.float32)
        yield model.eval(), _RELEASE[kind]


def release_ties(model: Any) -> dict[str, str]:
    """Second names of tensors in a release: the output head's, where it is tied to the embedding."""
    if not model.config.tie_word_embeddings:
        return {}
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    return {names[id(model.get_output_embeddings())]: names[id(model.get_input_embeddings())]}


@contextmanager
def transformers_errors(release: Path) -> Iterator[None]:
    """Turn an error in transformers, or in the release's code, into one line that names the release."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:300]
        raise ConversionError(f"{release}: transformers cannot run it: {type(error).__name__}: {what}") from error


def _check_sizes(release: Path, ours: DecoderConfig, theirs: Any) -> None:
    """Raise ConversionError for two models whose values cannot be compared."""
    if architecture_of(ours).name != theirs.model_type:
        raise ConversionError(
            f"{release}: is a {theirs.model_type} model and the checkpoint is not; they are not the same model"
        )
    for key in ("num_hidden_layers", "hidden_size", "vocab_size"):
        if getattr(ours, key) != getattr(theirs, key):
            raise ConversionError(
                f"{release}: has {key} {getattr(theirs, key)} where the checkpoint has {getattr(ours, key)}; "
                "they are not the same model"
            )


# ---- values, layer by layer -----------------------------------------------------------------------------------------


def prompt_ids(release: Path, prompts: Sequence[str], vocab_size: int, longest: int) -> list[list[int]]:
    """Ids of the prompts, at most `longest` of each, from the release's tokenizer; evenly spaced where it has none."""
    path = release / TOKENIZER
    if not path.exists():
        step = max(1, vocab_size // _SPREAD_IDS)
        length = min(_SPREAD_IDS, longest)
        return [[(first + i * step) % vocab_size for i in range(length)] for first in range(len(prompts))]
    from tokenizers import Tokenizer

    try:
        tokenizer = reading_text_as_data(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library has no narrower exception
        raise ConversionError(f"{path}: cannot be read as a tokenizer: {' '.join(str(error).split())}") from error
    rows = [ids[:longest] for ids in encode_texts(tokenizer, prompts) if ids]
    if not rows:
        raise ConversionError(f"{path}: gives no token for any prompt")
    return rows


def _batch(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as one batch [B, L], and a bool [B, L] that is false at padding.

    Padding is on the right, where causal attention from a real token never reads, so neither model needs a mask. It
    repeats the last token of a row, because unused rows of the embedding may have any values.
    """
    length = max(len(ids) for ids in rows)
    ids_BL = torch.tensor([[*ids, *[ids[-1]] * (length - len(ids))] for ids in rows])
    real_BL = torch.arange(length)[None, :] < torch.tensor([len(ids) for ids in rows])[:, None]
    return ids_BL, real_BL


def _observe(model: nn.Module, modules: _ComparedModules, see: Callable[[str, torch.Tensor], None]) -> None:
    """Call `see` with the name and the output of each compared module."""

    def watch(module: nn.Module, name: str) -> None:
        module.register_forward_hook(lambda _, __, out: see(name, out[0] if isinstance(out, tuple) else out))

    watch(model.get_submodule(modules.embedding), "embedding")
    for index, layer in enumerate(model.get_submodule(modules.layers).children()):
        watch(layer, f"layer {index}")
    watch(model.get_submodule(modules.norm), "final norm")


def _finite(path: Path, name: str, values: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(values).all():
        raise ConversionError(f"{path}: {name}: its values are not all finite; look for NaN or inf in its weights")
    return values


@contextmanager
def _scratch_file() -> Iterator[BinaryIO]:
    try:
        with tempfile.TemporaryFile() as file:
            yield file
    except OSError as error:
        what = error.strerror or error
        raise ConversionError(
            f"{tempfile.gettempdir()}: cannot store the values to compare: {what}; set TMPDIR to a directory with space"
        ) from error


def _rounded_to(config: DecoderConfig, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """The coarsest element type among weights with different types on the two sides; "float32" where none differ."""
    found = {"float32"}
    for rule in rules(config):
        our_types = {ours[key].dtype for key in map(state_key, rule.cerebras) if key in ours}
        their_types = {theirs[name].dtype for name in rule.hugging_face if name in theirs}
        if rule.cerebras[0].endswith(".slopes"):
            found |= our_types  # a release computes with exact slopes, the reference path with rounded ones
        elif our_types != their_types:
            found |= our_types | their_types
    return max(found, key=lambda dtype: UNIT_ROUNDOFF[dtype])
