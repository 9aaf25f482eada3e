"""What a phase takes: parameters, tokens, steps, arithmetic and checkpoint bytes, from its YAML alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cerebras_jais.launch.memory import gigabytes
from cerebras_jais.launch.phases import Phase
from cerebras_jais.launch.start import Launch, Start, predicted_start
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.freeze import trained_names
from cerebras_jais.model.tensors import Kind, tensors

BYTES_OF_A_WEIGHT = 4  # checkpoints hold float32
BYTES_OF_MOMENTS = 8  # AdamW keeps two more float32 for each weight that trains
_MULTIPLIED: tuple[Kind, ...] = ("attention", "attention_output", "ffn_input", "ffn_output", "head")


@dataclass(frozen=True)
class ModelSize:
    """Numbers of weights: all of them, those that train, and those of matrices that every token is multiplied by.

    `stored` counts a tensor under each of its names, as the Model Zoo writes a tied head.
    """

    parameters: int
    trained: int
    stored: int
    multiplied: int
    multiplied_and_trained: int

    @property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint of training, with the optimizer's state."""
        return BYTES_OF_A_WEIGHT * self.stored + BYTES_OF_MOMENTS * self.trained

    @property
    def training_bytes(self) -> int:
        """Of weights, gradients and the optimizer's state while training in float32."""
        return BYTES_OF_A_WEIGHT * (self.parameters + self.trained) + BYTES_OF_MOMENTS * self.trained


def model_size(config: DecoderConfig) -> ModelSize:
    """The size of a model, from its config alone. Raises ModelConfigError where `frozen_parameters` is wrong."""
    trained = trained_names(config)
    every = tensors(config)
    own = [tensor for tensor in every if tensor.same_as is None]
    # A tied head counts here: its tensor is looked up at the bottom, and multiplied by at the top.
    multiplied = [tensor for tensor in every if tensor.kind in _MULTIPLIED]
    return ModelSize(
        parameters=sum(tensor.size for tensor in own),
        trained=sum(tensor.size for tensor in own if tensor.name in trained),
        stored=sum(tensor.size for tensor in every),
        multiplied=sum(tensor.size for tensor in multiplied),
        multiplied_and_trained=sum(t.size for t in multiplied if (t.same_as or t.name) in trained),
    )


def training_flops(config: DecoderConfig, size: ModelSize, tokens: int) -> float:
    """Floating point operations of training on `tokens` tokens.

    A multiply-add counts two. Per token and matrix of n weights: 2n forward, 2n for the gradient of its input, 2n for
    its own gradient if it trains. Attention: 4 x length x width forward and twice that backward in each layer, with
    the masked half, as is usual; this package's kernels leave it out. (Kaplan et al. 2020, section 2.1, with attention
    in full.)
    """
    attention = 12 * config.max_position_embeddings * config.hidden_size * config.num_hidden_layers
    return float(tokens) * (4 * size.multiplied + 2 * size.multiplied_and_trained + attention)


def evaluation_flops(config: DecoderConfig, size: ModelSize, tokens: int) -> float:
    """Floating point operations of evaluating `tokens` tokens: the forward part of `training_flops`."""
    attention = 4 * config.max_position_embeddings * config.hidden_size * config.num_hidden_layers
    return float(tokens) * (2 * size.multiplied + attention)


def describe_launch(launch: Launch, memory: Callable[[Phase], Iterator[str]] = lambda phase: iter(())) -> Iterator[str]:
    """Lines that say what a launch would run: for each phase its size, tokens, steps, FLOPs, checkpoints and start.

    Args:
        launch: as planned.
        memory: more lines about a phase that would run.
    """
    index = launch.index
    for number, phase in enumerate(launch.phases):
        yield f"{phase.name}: {phase.config.init.model.name}, into {phase.model_dir}"
        if number < index:
            yield "  finished"
            continue
        if phase.ends is not None and phase.ends <= phase.begins:
            yield "  not reached: the launch ends before it"
            continue
        begins = launch.start if number == index else predicted_start(launch.phases, number)
        yield from (f"  {line}" for line in _describe(phase, begins))
        yield from (f"  {line}" for line in memory(phase))


def _describe(phase: Phase, start: Start) -> Iterator[str]:
    config, model = phase.config, phase.config.init.model
    size = model_size(model)
    frozen = f", of which {size.trained:,} train" if model.frozen_parameters else ""
    yield f"parameters  {size.parameters:,}{frozen}"
    if config.fit is not None:
        # A CS system takes no notice of grad_accum_steps (Model Zoo trainer/callbacks/grad_accum.py).
        batches = 1 if config.init.backend_type == "CSX" else config.init.loop.grad_accum_steps
        sequences = config.fit.train_dataloader.batch_size * batches
        length = model.max_position_embeddings
        each = f"{sequences:,} sequences of {length:,} tokens each"
        if phase.ends is None:
            yield f"steps       as many as num_epochs of its data, {each}"
        else:
            steps = phase.ends - phase.begins
            tokens = steps * sequences * length
            yield f"steps       {steps:,} ({phase.begins:,} to {phase.ends:,}), {each}"
            yield f"tokens      {tokens:,}"
            yield f"FLOPs       {training_flops(model, size, tokens):.3g}"
            yield from _describe_checkpoints(phase, size, steps)
    there = "" if start.is_here else "; the file does not exist yet"
    assumed = f", step {phase.begins:,} is assumed {phase.assumed}" if phase.assumed else ""
    yield f"starts      {start}{there}{assumed}"


def _describe_checkpoints(phase: Phase, size: ModelSize, steps: int) -> Iterator[str]:
    every = phase.config.init.checkpoint.steps
    if not every:
        yield "checkpoints none"
        return
    written = -(-steps // min(every, steps))
    if phase.config.aside:
        yield f"checkpoints {written:,}, whose size the Model Zoo decides"
        return
    keep = (phase.config.callback("KeepNCheckpoints") or {}).get("n")
    kept = min(written, keep or written)
    total = kept * size.checkpoint_bytes
    yield f"checkpoints {kept:,} of {size.checkpoint_bytes:,} bytes each, {gigabytes(total)} GB in all"
