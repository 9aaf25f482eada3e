"""The numbers that a user may give, in a trainer YAML, on a command line or in a checkpoint.

A number outside its range is refused where it is read. The bounds admit every model and run of the field; beyond them a
value overflows, divides by zero, or fills the memory before anything else can refuse it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless `below` leaves `high` out; whole ones alone where `whole`."""

    low: float
    high: float
    whole: bool = False
    below: bool = False

    def __str__(self) -> str:
        """`a whole number from 1 to 1024`, as messages say it."""
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} from {_plain(self.low)} to {'less than ' if self.below else ''}{_plain(self.high)}"

    def holds(self, value: Any) -> bool:
        """Whether a value is a number of this range; true and false are no numbers, 3.0 is a whole one."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if self.whole and value % 1:
            return False
        return self.low <= value < self.high if self.below else self.low <= value <= self.high

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, in words; None where nothing is."""
        return None if self.holds(value) else f"must be {self} (got {shown(value)})"


COUNT = Range(1, 2**31 - 1, whole=True)  # steps, samples, batches, processes
COUNT_OR_NONE = Range(0, 2**31 - 1, whole=True)  # the same where 0 means never or none
STREAMED = Range(0, 2**53, whole=True)  # samples of a whole run; every one is exact in float64
SIZE = Range(1, 2**20, whole=True)  # widths, heads, sequence lengths, batches of a step
LAYERS = Range(1, 1024, whole=True)
VOCABULARY = Range(1, 512_000, whole=True)  # Model Zoo models/nlp/gpt2/gpt2_model.py: vocab_size is at most 512,000
SEED = Range(0, 2**62, whole=True)  # torch and numpy take it, and the number of an epoch may be added to it
BASE_WIDTH = Range(1, 2**20)  # muP's base sizes, which need not be whole
RATE = Range(0, 10)  # learning rates, weight decay
RATE_SCALE = Range(0, 1000)  # of the learning rate of some parameters
FRACTION = Range(0, 1, below=True)  # dropout, AdamW's betas
SHARE = Range(0, 1)
EPSILON = Range(1e-30, 1)  # 0 would divide 0 by 0; less is 0 in float32
SPREAD = Range(1e-6, 10)  # standard deviation of initial weights
OFFSET = Range(-10, 10)  # mean and bounds of initial weights
FACTOR = Range(1e-9, 1e9)  # muP's and the loss's factors
WEIGHT = Range(0, 1e9)  # of a part of a mixture
LOSS_SCALE = Range(2.0**-126, 2.0**127)  # the powers of 2 of float32; a dynamic scale doubles without end
ROTATION = Range(1, 1e12)  # the base of rotary angles
TEMPERATURE = Range(0, 100)
PENALTY = Range(0.1, 10)  # of repetition
PORT = Range(0, 65535, whole=True)  # 0 is any that is free
GIGABYTES = Range(0.001, 1e6)  # of memory
SECONDS = Range(0, 86_400)  # that something may take


def shown(value: Any, longest: int = 80) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print whole numbers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= longest else f"{text[:longest]}..."


def subset_bounds(text: Any) -> list[tuple[float, float]]:
    """The ranges of a data set that `data_subset` selects: "0.1-0.3,0.7-1.0" is [(0.1, 0.3), (0.7, 1.0)].

    Raises ValueError for ranges that cannot be read, leave [0, 1] or do not rise.
    """
    try:
        if "_" in str(text):  # Python reads 0_1 as 1
            raise ValueError
        ranges = [tuple(float(bound) for bound in part.split("-")) for part in str(text).strip().split(",")]
        bounds = [bound for start, end in ranges for bound in (start, end)]
    except ValueError:
        bounds = [math.nan]
    if not all(SHARE.holds(bound) for bound in bounds) or bounds != sorted(bounds):
        raise ValueError(
            f"must be rising ranges within 0 to 1 such as '0.0-0.5' or '0.1-0.3,0.7-1.0' (got {shown(text)})"
        )
    return list(zip(bounds[::2], bounds[1::2], strict=True))


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
