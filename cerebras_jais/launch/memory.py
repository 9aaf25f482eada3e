"""The memory of each process of a run on the reference path: its terms, each stated once, with where it comes from.

A run passes through stages, each of which holds other things at once: reading, the loss, the backward pass of the last
layer (all activations, few gradients), that of the first layer (few activations, all gradients), the root group after
it, evaluation and writing. The stage that holds the most decides.

T tokens of a micro-batch in one process, L length, M hidden, F filter, V vocabulary, H heads. Bytes, of float32 unless
a term says 16 bits. Origins: "derived" from what the code and PyTorch keep (tests count it), "measured" by
benchmarks/memory.py, "assumed" of machines that were not there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.model.config import LOGITS_AT_ONCE, SUMMED_AT_ONCE, DecoderConfig
from cerebras_jais.model.freeze import trained_names
from cerebras_jais.model.tensors import ModelTensor, bare_name, tensors

Origin = Literal["derived", "measured", "assumed"]

GB = 10**9
_PROCESS = {"cpu": 450_000_000, "gpu": 2_000_000_000}  # Python and torch; with CUDA's context, its kernels and NCCL


@dataclass(frozen=True)
class Arrangement:
    """How a model is trained, as far as memory depends on it.

    Attributes:
        processes: all of them.
        sharded: whether they divide the model (FSDP2), or each has a copy (DDP).
        rows: of a micro-batch, in each process.
        held_out_rows: of a batch that is evaluated, in each process.
        accumulates: whether several micro-batches make a step.
        half: whether matrices are multiplied in 16 bits.
        activation_checkpointing: whether a layer's activations are computed again in the backward pass.
        backend: "cpu" (gloo) or "gpu" (NCCL).
    """

    processes: int = 1
    sharded: bool = False
    rows: int = 1
    held_out_rows: int = 0
    accumulates: bool = False
    half: bool = False
    activation_checkpointing: bool = False
    backend: str = "cpu"


@dataclass(frozen=True)
class Term:
    """A part of the memory of a process: bytes, and where the formula comes from."""

    name: str
    bytes: int
    origin: Origin


@dataclass(frozen=True)
class Stage:
    """What a process holds at one moment of a run."""

    name: str
    terms: tuple[Term, ...]

    @property
    def bytes(self) -> int:
        """Of all terms."""
        return sum(term.bytes for term in self.terms)

    @property
    def largest(self) -> Term:
        """The term with the most bytes."""
        return max(self.terms, key=lambda term: term.bytes)


def arrangement_of(
    config: TrainerConfig, processes: int, sharding: str, *, activation_checkpointing: bool, backend: str
) -> Arrangement:
    """How a phase is trained by `processes` processes; its batch must be divisible by them (`plan.check_division`)."""
    assert config.fit is not None
    precision = config.init.precision
    return Arrangement(
        processes=processes,
        sharded=sharding == "fsdp" and processes > 1,
        rows=-(-config.fit.train_dataloader.batch_size // processes),
        held_out_rows=max((-(-section.batch_size // processes) for section in config.fit.val_dataloader), default=0),
        accumulates=config.init.loop.grad_accum_steps > 1,
        half=precision is not None and precision.enabled,
        activation_checkpointing=activation_checkpointing,
        backend=backend,
    )


def peak(config: DecoderConfig, run: Arrangement) -> Stage:
    """The stage of a run that takes the most memory. Raises ModelConfigError where `frozen_parameters` is wrong."""
    return max(stages(config, run), key=lambda stage: stage.bytes)


def stages(config: DecoderConfig, run: Arrangement) -> tuple[Stage, ...]:
    """The stages of a run, in their order, for the process that holds the most: the first."""
    return _Sizes(config, run).stages()


def memory_problem(config: DecoderConfig, run: Arrangement, available: int) -> str | None:
    """What is wrong where a process takes more than `available` bytes: how much, its largest term, and a remedy."""
    stage = peak(config, run)
    if stage.bytes <= available:
        return None
    who = "training takes" if run.processes == 1 else f"each of {run.processes} processes takes"
    return (
        f"{who} {gigabytes(stage.bytes)} GB of memory and has {gigabytes(available)}; the largest part is "
        f"{stage.largest.name}, {gigabytes(stage.largest.bytes)} GB: {_remedy(stage.largest, config, run)}"
    )


def describe_memory(config: DecoderConfig, run: Arrangement) -> Iterator[str]:
    """Lines about the memory of each process: the sum, the terms of the stage that takes the most, the other stages."""
    most, length = peak(config, run), config.max_position_embeddings
    how = (
        f"each of {run.processes:,} processes, {'fsdp' if run.sharded else 'ddp'}"
        if run.processes > 1
        else "one process"
    )
    kind = f"{run.backend}, {'16 bits' if run.half else 'float32'}"
    again = ", activation checkpointing" if run.activation_checkpointing else ""
    yield f"memory      {gigabytes(most.bytes)} GB in {how}, {kind}{again}, {run.rows:,} x {length:,} tokens at a time"
    for term in sorted(most.terms, key=lambda term: -term.bytes):
        if term.bytes:
            yield f"            {gigabytes(term.bytes):>8} GB  {term.name} ({term.origin})"
    others = ", ".join(f"{stage.name} {gigabytes(stage.bytes)}" for stage in stages(config, run) if stage != most)
    yield f"            at its most in: {most.name}; GB in other stages: {others}"


def _remedy(term: Term, config: DecoderConfig, run: Arrangement) -> str:
    if term.name in ("weights", "moments", "gradients") and not run.sharded:
        return "--sharding fsdp divides it among processes; or take a smaller model"
    if term.name in ("weights", "moments", "gradients"):
        return "take more processes"
    of_pairs = run.backend == "cpu" and _pairs(config, run) > 0
    if term.name == "the mask of attention" or (term.name == "activations" and of_pairs):
        return "without attention_dropout_rate, attention takes memory for each token, not for each pair of them"
    if term.name == "a batch evaluated":
        return "give val_dataloader a smaller batch_size"
    if term.name in ("activations", "gradients of activations"):
        if not run.activation_checkpointing:
            return "add --activation-checkpointing, or give a smaller batch_size"
        if run.rows > 1:
            more = ", or more processes" if run.sharded else ""
            return f"give a smaller batch_size and more grad_accum_steps{more}"
    return "more processes do not make it smaller; take ones with more memory, or a smaller model"


def gigabytes(size: int) -> str:
    """A number of bytes in GB of 10^9, of three digits or all that are whole; `1.42e+04` is never written."""
    return f"{size / GB:,.3g}" if size < 999.5 * GB else f"{size / GB:,.0f}"


def saved_bytes(config: DecoderConfig, run: Arrangement) -> int:
    """Activations that one layer keeps for its backward pass: derived, and counted by the tests.

    Its input, the sum after attention and what the norms keep stay float32; what enters and leaves the matrices is of
    the type they are multiplied in. LayerNorm keeps its input and two numbers per token, RMSNorm a product more and
    one number. Attention keeps q, k, v, its result and one number per head and token (`model/kernels`); behind rotary
    angles its result is copied into the order of tokens. A matrix in 16 bits keeps a copy of its input of its own: q,
    k and v, and the two of the feed-forward network, do not share one. SwiGLU keeps both halves, the activation and
    their product. Dropout keeps what it multiplies by at two places, and of attention the kernel of a CPU three numbers
    for each pair of tokens.
    """
    rows, length = run.rows, config.max_position_embeddings
    M, F, H = config.hidden_size, config.filter_size, config.num_heads
    rotary, rms = config.position_embedding_type == "rotary", config.norm_type == "rmsnorm"
    wide = 2 * M + (2 * M if rms else 0) + (2 if rms else 4) + H
    narrow = 4 * M + (M if rotary else 0) + (5 if run.half else 2) * M + 4 * F
    dropped = 2 * M * (_width(run) if run.backend == "cpu" else 1) if config.dropout_rate else 0
    of_pairs = 3 * _pairs(config, run) if run.backend == "cpu" else 0
    return rows * length * (4 * wide + _width(run) * narrow + dropped) + of_pairs


def _pairs(config: DecoderConfig, run: Arrangement) -> int:
    """Bytes of a float32 number for each pair of tokens and head, where dropout on attention has need of them."""
    if not config.attention_dropout:
        return 0
    return 4 * run.rows * config.num_heads * config.max_position_embeddings**2


def share_bytes(tensor: ModelTensor, processes: int) -> int:
    """Of the rows that the first process keeps: FSDP2 gives each ceil(rows / processes), the last ones fewer."""
    return 4 * -(-tensor.shape[0] // processes) * math.prod(tensor.shape[1:])


class _Sizes:
    """The terms of one run."""

    def __init__(self, config: DecoderConfig, run: Arrangement):
        self.config, self.run = config, run
        self.own = [tensor for tensor in tensors(config) if tensor.same_as is None]
        names = trained_names(config)
        self.trained = [tensor for tensor in self.own if tensor.name in names]
        self.layer = [t for t in self.own if bare_name(t.name).startswith("transformer_decoder.layers.0.")]
        self.root = [t for t in self.own if not bare_name(t.name).startswith("transformer_decoder.layers.")]
        self.tokens = run.rows * config.max_position_embeddings

    def stages(self) -> tuple[Stage, ...]:
        state, mask = (self.process(), self.weights(), self.moments()), self.mask()
        held, halves = self.gradients_held(), self.half_weights()
        gathered, flight, root = self.layers_gathered(), self.layers_summed(), self.root_in_flight()
        layers, first = self.config.num_hidden_layers, self.first_gradients()
        return (
            Stage("reading", (*state, self.while_reading())),
            Stage("the loss", (*state, held, halves, *root, self.kept(), *mask, self.logits())),
            Stage("backward, last layer", (*state, first, halves, *root, *gathered, *mask, *self.activations(layers))),
            Stage(
                "backward, next layer", (*state, first, halves, *root, *flight, *mask, *self.activations(layers - 1))
            ),
            Stage(
                "backward, first layer",
                (*state, self.gradients(but=self.layer), *root, *flight, *mask, *self.activations(1)),
            ),
            Stage("backward, embedding", (*state, self.gradients(), *self.root_at_its_end())),
            Stage("evaluation", (*state, halves, *gathered, *self.root_gathered(), self.evaluated())),
            Stage("writing", (*state, self.while_writing())),
        )

    def process(self) -> Term:
        """Of the process before it has a model."""
        measured: Origin = "measured" if self.run.backend == "cpu" else "assumed"
        return Term("the process itself", _PROCESS[self.run.backend], measured)

    def weights(self) -> Term:
        """float32, whatever the matrices are multiplied in."""
        return Term("weights", self._share(self.own), "derived")

    def moments(self) -> Term:
        """AdamW's two of each weight that trains."""
        return Term("moments", 2 * self._share(self.trained), "derived")

    def gradients(self, but: Collection[ModelTensor] = ()) -> Term:
        """All of them, but those of a layer whose backward pass is to come. DDP has them in its buckets, too.

        FSDP2 keeps a process's share, also where several micro-batches make a step: each is summed over the processes.
        """
        run, buckets = self.run, self._buckets()
        there = self.trained if run.accumulates else [t for t in self.trained if t not in but]
        kept = self._share(there) if run.sharded else _bytes(there)
        return Term("gradients", kept + buckets, "derived")

    def gradients_held(self) -> Term:
        """Those of the micro-batches before, while another is read forward."""
        return self.gradients() if self.run.accumulates else Term("gradients", self._buckets(), "derived")

    def first_gradients(self) -> Term:
        """Those that are there when the backward pass begins: the head's, which the loss makes."""
        head = 0 if self.run.sharded or self.run.accumulates else self._head_gradient()
        return Term("gradients", self.gradients_held().bytes + head, "derived")

    def half_weights(self) -> Term:
        """Autocast's copies in 16 bits of the matrices of all layers, kept from the forward pass on.

        FSDP2 has none: it gathers them in 16 bits.
        """
        matrices = [t for t in self.own if len(t.shape) == 2 and t.kind not in ("embedding", "slopes", "head")]
        copies = self.run.half and not self.run.sharded
        return Term("16-bit weights", _bytes(matrices) // 2 if copies else 0, "derived")

    def layers_gathered(self) -> tuple[Term, ...]:
        """Weights that FSDP2 gathers, padded to equal shares: of the layer at work and, in one piece, of the next."""
        if not self.run.sharded:
            return ()
        return (Term("layers in flight", 2 * self._padded(self.layer) * _width(self.run) // 4, "derived"),)

    def layers_summed(self) -> tuple[Term, ...]:
        """Those, the gradients of the layer at work, and in float32 those of the one before while they are summed.

        (gloo may hold copies of what it has summed for a moment, which count in layers of some megabytes only.)
        """
        if not self.run.sharded:
            return ()
        (gathered,) = self.layers_gathered()
        summed = self._padded([t for t in self.layer if t in self.trained])
        return (Term("layers in flight", gathered.bytes + summed * _width(self.run) // 4 + summed, "derived"),)

    def root_in_flight(self) -> tuple[Term, ...]:
        """Embedding, head and last norm, which FSDP2 keeps gathered from the forward pass on, and the head's gradient.

        Without FSDP2 they are among the weights, and the gradient among the gradients.
        """
        if not self.run.sharded:
            return ()
        return (Term("embedding and head", self._padded(self.root) + self._head_gradient(), "derived"),)

    def root_gathered(self) -> tuple[Term, ...]:
        """Embedding, head and last norm, without gradients."""
        return (Term("embedding and head", self._padded(self.root), "derived"),) if self.run.sharded else ()

    def root_at_its_end(self) -> tuple[Term, ...]:
        """The gradients of embedding and head, of which a tied one is the sum, before and while they are summed."""
        tables = [t for t in self.root if t in self.trained and t.kind in ("embedding", "head")]
        tied = self.config.share_embedding_weights
        if not self.run.sharded:
            return (Term("embedding and head", _bytes(tables) if tied else 0, "derived"),)
        gradients = _bytes(tables) * (2 if tied else 1)
        return (Term("embedding and head", self._padded(self.root) + gradients, "derived"),)

    def kept(self) -> Term:
        """Activations at the end of the forward pass: of all layers and of the last norm."""
        each = self._layer_input() if self.run.activation_checkpointing else saved_bytes(self.config, self.run)
        once = 2 * self._layer_input() + self._embedding_dropout()
        return Term("activations", self.config.num_hidden_layers * each + once, "derived")

    def activations(self, layers: int) -> tuple[Term, ...]:
        """Those of the layers whose backward pass is to come, and what it needs while it runs.

        That is the gradients of the product of SwiGLU, of its halves and of the layer's result.
        """
        every, layer = saved_bytes(self.config, self.run), self._layer_input()
        working = self.tokens * _width(self.run) * 2 * self.config.filter_size + 2 * layer
        kept = every + (layers - 1) * (layer if self.run.activation_checkpointing else every) if layers else 0
        kept += self._embedding_dropout()
        return Term("activations", kept, "derived"), Term("gradients of activations", working, "measured")

    def mask(self) -> tuple[Term, ...]:
        """The mask of every pair of tokens, which dropout on attention needs, of each row, as packed rows have it."""
        alibi = self.config.position_embedding_type == "alibi"
        each = _pairs(self.config, self.run) // (1 if alibi else self.config.num_heads)
        size = each if self.run.backend == "cpu" else each * _width(self.run) // 4
        return (Term("the mask of attention", size, "derived"),) if size else ()

    def _embedding_dropout(self) -> int:
        numbers = self.tokens * self.config.hidden_size if self.config.embedding_dropout else 0
        return numbers * (4 if self.run.backend == "cpu" else 1)

    def logits(self) -> Term:
        """Of the tokens that the loss takes at once, and their exponentials; the gradients that it makes with them.

        The head's gradient grows by a product of which some rows exist at a time.
        """
        size = self.config.vocab_size
        at_once = size * min(self.tokens, max(1, LOGITS_AT_ONCE // size))
        half_head = 2 * size * self.config.hidden_size if self.run.half else 0
        head = 0 if self.run.sharded else self._head_gradient()  # else with embedding and head
        summed = 4 * min(SUMMED_AT_ONCE, size * self.config.hidden_size)
        return Term("logits", 2 * 4 * at_once + head + half_head + summed + self._layer_input(), "derived")

    def evaluated(self) -> Term:
        """Of a batch that is evaluated: three residuals and what SwiGLU computes with, or a residual and the logits."""
        config = self.config
        tokens = self.run.held_out_rows * config.max_position_embeddings
        in_layer = tokens * (4 * 3 * config.hidden_size + _width(self.run) * 3 * config.filter_size)
        at_once = config.vocab_size * min(tokens, max(1, LOGITS_AT_ONCE // config.vocab_size))
        return Term("a batch evaluated", max(in_layer, 4 * tokens * config.hidden_size + 2 * 4 * at_once), "derived")

    def while_writing(self) -> Term:
        """The largest tensor whole, and the shares of all that it is put together from; in the first process."""
        if not self.run.sharded:
            return Term("the tensor being written", 0, "derived")
        return Term("the tensor being written", 2 * max(self._padded([t]) for t in self.own), "derived")

    def while_reading(self) -> Term:
        """The rows of the largest tensor that one process reads."""
        return Term("the tensor being read", max(self._share([t]) for t in self.own), "derived")

    def _buckets(self) -> int:
        return _bytes(self.trained) if self.run.processes > 1 and not self.run.sharded else 0

    def _head_gradient(self) -> int:
        heads = [t for t in tensors(self.config) if t.kind == "head"]
        trained = {t.name for t in self.trained}
        return _bytes([t for t in heads if (t.same_as or t.name) in trained])

    def _layer_input(self) -> int:
        return 4 * self.tokens * self.config.hidden_size

    def _share(self, chosen: list[ModelTensor]) -> int:
        return sum(share_bytes(t, self.run.processes if self.run.sharded else 1) for t in chosen)

    def _padded(self, chosen: list[ModelTensor]) -> int:
        return self.run.processes * self._share(chosen)


def _bytes(chosen: list[ModelTensor]) -> int:
    return 4 * sum(tensor.size for tensor in chosen)


def _width(run: Arrangement) -> int:
    """Bytes of a number that a matrix is multiplied by."""
    return 2 if run.half else 4
