"""The reference path on one GPU: tokens a second, the share of its bfloat16 matrix rate, memory, and agreement.

    python benchmarks/gpu.py [--budget 300]

- The rate of a large bfloat16 matrix product, measured in this run, is the limit.
- Agreement: attention by the kernel and with a mask of every pair, both against float64 on the mask of every pair: the
  largest error of the output and of each gradient over the largest magnitude. In bfloat16 a GPU's mask is rounded to
  bfloat16 too.
- Forward passes and training steps (AdamW, clipping) of two models of the family, in bfloat16 from float32 weights: a
  step reads 8,192 tokens, or one row of the length; packed rows have documents of 300 to 700 tokens. FLOPs are those
  of the matrix products, attention's of visible pairs alone.

The fastest of some steps counts. A row is printed as soon as it is measured. A training step that does not fit into
memory is tried again with activations computed anew ("recomputed"). What does not fit either, or not into the budget in
seconds, is left out and said. `--device cpu` runs toy sizes, as a test of this program.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import torch

from benchmarks.training_work import (
    DOCUMENTS,
    Work,
    flops_of_forward,
    packed_rows,
    plain_rows,
    token_batch,
    training_step,
)
from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.model.alibi import alibi_slopes
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.kernels.flex import flex_serves, make_flex_mask
from cerebras_jais.model.kernels.tiled import make_tiling
from cerebras_jais.model.precision import forward_precision
from tests.cerebras_jais.model.kernels.masked import SCALE, documents, ends_of, random_heads, results, with_mask

MODELS = ("jais-family-590m", "jais-family-1p3b")
HALF = torch.bfloat16


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured.

    lengths: of rows; tokens: of a step, where it has several rows; documents: their sizes in packed rows.
    matrix: rows of the product; heads, agreement: number and size of the heads compared, and the length of their row.
    steps: timed after the first.
    toy: values of the models' configs that are changed.
    """

    lengths: tuple[int, ...]
    tokens: int
    documents: tuple[int, ...]
    matrix: int
    heads: tuple[int, int]
    agreement: int
    steps: int
    toy: dict[str, int | float]


SIZES = {
    "cuda": Sizes((2048, 8192, 16384), 8192, DOCUMENTS, 8192, (12, 128), 2048, 3, {}),
    "cpu": Sizes(
        (64, 128, 256),
        256,
        (9, 15, 21, 15),
        256,
        (2, 16),
        128,
        1,
        {
            "vocab_size": 512,
            "hidden_size": 32,
            "num_heads": 2,
            "num_hidden_layers": 1,
            "filter_size": 64,
            "mup_base_filter_size": 64.0,
        },
    ),
}


class Clock:
    """The budget, and how long a measurement may take by what was seen before it."""

    def __init__(self, budget: float) -> None:
        self.start, self.budget = time.perf_counter(), budget
        self.slowest_rate, self.longest_before = 0.0, 0.0

    @property
    def left(self) -> float:
        return self.budget - (time.perf_counter() - self.start)

    def expected(self, flops: float) -> float:
        """Seconds for so many FLOPs, and for what is built and compiled before; 0 before anything was measured."""
        return self.longest_before + (flops / self.slowest_rate if self.slowest_rate else 0.0)

    def learn(self, rate: float, before: float) -> None:
        self.slowest_rate = min(self.slowest_rate or rate, rate)
        self.longest_before = max(self.longest_before, before)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What is measured on, with the time there is."""

    device: str
    sizes: Sizes
    clock: Clock
    rate: float
    """Of a bfloat16 matrix product, FLOP/s."""


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds until the device has done it."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate(size: int, device: str) -> float:
    """FLOP/s of a product of two square bfloat16 matrices."""
    a, b = (torch.randn(size, size, device=device).to(HALF) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: a @ b, device) for _ in range(10))


def measure_agreement(machine: Machine) -> None:
    device, sizes, clock = machine.device, machine.sizes, machine.clock
    (heads, head_dim), length = sizes.heads, sizes.agreement
    slopes = torch.tensor(alibi_slopes(heads), device=device)

    def by_kernel(q, k, v, slopes_H, factor, span_BL):
        ends = ends_of(span_BL)
        if device == "cpu":
            return make_tiling(length, heads, slopes_H / factor, ends).attend(q, k, v, SCALE)
        return make_flex_mask(length, slopes_H / factor, ends, q.device).attend(q, k, v, SCALE)

    print(f"\nattention, {heads} heads of {head_dim}, {length:,} tokens: errors of output, q, k and v against float64")
    for dtype, packed in itertools.product((torch.float32, HALF), (False, True)):
        label = f"{str(dtype).removeprefix('torch.')}, {'packed' if packed else 'plain'}"
        if clock.left < clock.expected(0) or clock.left <= 0:
            print(f"  {label:<28}left out: {max(0.0, clock.left):.0f} s are left")
            continue
        if device == "cuda" and not flex_serves(torch.device(device), dtype):
            print(f"  {label:<28}left out: FlexAttention does not serve here; models have the mask of every pair")
            continue
        span = documents(packed_rows(1, length, sizes.documents).documents, length).to(device) if packed else None
        *inputs, grad = random_heads(1, heads, length, head_dim, device, dtype)
        words = (slopes, 1.0, span)
        right = results(with_mask, inputs, grad, torch.float64, *words)
        for name, attend in (("kernel", by_kernel), ("mask", with_mask)):
            began = clock.left
            found = results(attend, inputs, grad, dtype, *words)
            errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, right, strict=True)]
            clock.longest_before = max(clock.longest_before, began - clock.left)
            print(f"  {f'{label}, {name}':<28}" + "  ".join(f"{error:.1e}" for error in errors), flush=True)


def model_config(name: str, sizes: Sizes, length: int) -> DecoderConfig:
    (config,) = read_trainer_yaml(name)
    changes = {"max_position_embeddings": length, **sizes.toy}
    return DecoderConfig.model_validate({**config.init.model.model_dump(exclude_unset=True), **changes})


def step_of(model: LanguageModel, training: bool, device: str) -> Callable[[dict], object]:
    if training:
        return training_step(model, device, HALF)

    def forward(batch: dict) -> None:
        with forward_precision(device, HALF):
            model.mean_loss(batch)

    return forward


def measure(
    machine: Machine, config: DecoderConfig, work: Work, training: bool, recompute: bool
) -> tuple[float, float]:
    """Seconds of the fastest step, and the peak of memory in GB (0 on a CPU)."""
    device = machine.device
    torch.manual_seed(0)
    with torch.device(device):
        model = LanguageModel(config)
    model.model.activation_checkpointing = recompute
    step, batch = step_of(model, training, device), token_batch(work, config.vocab_size, device)
    step(batch)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    fastest = min(timed(lambda: step(batch), device) for _ in range(machine.sizes.steps))
    return fastest, torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0


def measure_models(machine: Machine, models: list[str], lengths: list[int]) -> None:
    print(f"\n{'':<52}{'s':>9}{'tokens/s':>11}{'of matrix rate':>16}{'peak GB':>9}")
    sizes = machine.sizes
    for name, packed in itertools.product(models, (False, True)):
        if machine.device == "cuda":
            torch.compiler.reset()  # PyTorch compiles a function for eight kinds of arguments, and then no more
        for length in lengths:
            config, rows = model_config(name, sizes, length), max(1, sizes.tokens // length)
            work = packed_rows(rows, length, sizes.documents) if packed else plain_rows(rows, length)
            label = f"{name}, {rows} x {length}, {'packed' if packed else 'plain'}"
            for training in (False, True):
                measure_row(machine, f"{label}, {'step' if training else 'forward'}", config, work, training)


def measure_row(machine: Machine, label: str, config: DecoderConfig, work: Work, training: bool) -> None:
    """Measure and print a row, or say why it is left out."""
    clock, steps = machine.clock, machine.sizes.steps
    flops = flops_of_forward(config, work) * (3 if training else 1)
    for recompute in (False, True) if training else (False,):
        expected, began = clock.expected(flops * (1 + steps)), clock.left
        if began < expected or began <= 0:
            print(f"{label:<52}  left out: it may take {expected:.0f} s, and {max(0.0, began):.0f} s are left")
            return
        try:
            seconds, peak = measure(machine, config, work, training, recompute)
        except torch.cuda.OutOfMemoryError:
            continue
        finally:
            gc.collect()
            if machine.device == "cuda":
                torch.cuda.empty_cache()
        clock.learn(flops / seconds, max(0.0, began - clock.left - (1 + steps) * seconds))
        memory = f"{peak:>9.1f}" if machine.device == "cuda" else f"{'-':>9}"
        rates = f"{work.tokens / seconds:>11.0f}{flops / seconds / machine.rate:>16.0%}"
        print(f"{label + ', recomputed' * recompute:<52}{seconds:>9.4f}{rates}{memory}", flush=True)
        return
    print(f"{label:<52}  left out: the memory of the GPU does not suffice", flush=True)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SIZES, default="cuda")
    parser.add_argument("--budget", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--lengths", type=int, nargs="+", metavar="TOKENS")
    options = parser.parse_args(words)
    clock, device, sizes = Clock(options.budget), options.device, SIZES[options.device]
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is visible to PyTorch; --device cpu tests this program at toy sizes")
    rate = matrix_rate(sizes.matrix, device)
    named = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{named}, torch {torch.__version__}, {time.strftime('%d %B %Y')}")
    print(f"bfloat16 matrix rate: {rate / 1e12:.4g} TFLOP/s ({sizes.matrix}^3)")
    machine = Machine(device, sizes, clock, rate)
    measure_agreement(machine)
    measure_models(machine, options.models, options.lengths or list(sizes.lengths))
    print(f"\n{options.budget - clock.left:.0f} s of {options.budget:.0f} s")


if __name__ == "__main__":
    main()
