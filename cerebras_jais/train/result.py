"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cerebras_jais.train.evaluation import Evaluation


@dataclass(frozen=True)
class FitResult:
    """The result of a run.

    Losses in nats, the largest learning rate and the norm of all gradients before clipping are of each step from
    `start_step` on; evaluations are of the end of the run. All are empty where only records were missing.
    """

    start_step: int
    steps: int
    losses: list[float] = field(repr=False)
    learning_rates: list[float] = field(repr=False)
    gradient_norms: list[float] = field(repr=False)
    evaluations: list[Evaluation]
    checkpoint_path: Path | None
    model_dir: Path
    tokens: int
    tokens_per_second: float
    seconds: float

    @property
    def first_loss(self) -> float:
        return self.losses[0]

    @property
    def last_loss(self) -> float:
        return self.losses[-1]

    @property
    def eval_loss(self) -> float | None:
        """Held-out loss on the first data set, None without one."""
        return self.evaluations[0].loss if self.evaluations else None
