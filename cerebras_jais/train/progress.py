"""What a run shows and leaves behind: the progress line, TensorBoard, losses.csv, and the loss curve as a picture."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

LOSSES_FILE = "losses.csv"
CURVE_FILE = "loss_curve.png"
_COLUMNS = ("step", "loss", "learning_rate", "tokens", "seconds", "eval_loss")


class Reporter:
    """Reports one run; silent processes get `quiet`.

    Args:
        model_dir: where the files go; made when the first one is written.
        total: the step the run ends at.
        start: the step it begins at; what an earlier run left in losses.csv after it is dropped.
        tensorboard: whether event files are written.
        events_dir: where they go, `model_dir`/events if None.
    """

    def __init__(
        self,
        model_dir: Path,
        start: int,
        total: int,
        *,
        log_steps: int = 1,
        tensorboard: bool = True,
        events_dir: str | Path | None = None,
        quiet: bool = False,
        writes: bool = True,
        stream: TextIO | None = None,
    ):
        self.model_dir, self.start, self.total, self.log_steps = model_dir, start, total, log_steps
        self.quiet, self.writes = quiet, writes
        self.stream = stream or sys.stderr
        self.began = time.perf_counter()
        self.training_seconds = 0.0
        self.tokens = 0
        self._rows: list[dict[str, Any]] = self._earlier_rows() if writes else []
        self._bar: Any = None
        self._events: Any = None
        self._since = (self.began, 0)
        if not quiet and self.stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, file=self.stream, unit="step", dynamic_ncols=True)
        if writes and tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(
                str(events_dir or model_dir / "events"), purge_step=start + 1 if start else None
            )

    def say(self, line: str) -> None:
        """Print one line."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)

    def step(self, step: int, loss: float, learning_rate: float, tokens: int, seconds: float) -> None:
        """Record one optimizer step, its loss, the largest learning rate, its tokens and how long it took."""
        self.tokens += tokens
        self.training_seconds += seconds
        row = {"step": step, "loss": loss, "learning_rate": learning_rate, "tokens": tokens, "seconds": seconds}
        self._rows.append(row)
        if self._bar is not None:
            self._bar.update(1)
        done = step - self.start
        if not (step == self.total or (self.log_steps and done % self.log_steps == 0)):
            return
        seconds_before, tokens_before = self._since if self._since[1] else (0.0, 0)
        passed = self.training_seconds - seconds_before
        rate = (self.tokens - tokens_before) / passed if passed > 0 else math.nan
        self._since = (self.training_seconds, self.tokens)
        line = f"loss {loss:.4f}  {rate:,.0f} tokens/s  lr {learning_rate:.3g}"
        if self._bar is not None:
            self._bar.set_postfix_str(line)
        else:
            self.say(f"step {step:>{len(str(self.total))}}/{self.total}  {line}")
        self._scalars(step, {"loss": loss, "learning_rate": learning_rate, "tokens_per_second": rate})

    def evaluation(self, step: int, number: int, loss: float, perplexity: float, accuracy: float) -> None:
        """Record one evaluation on the held-out data set of this number."""
        which = f" on set {number}" if number else ""
        self.say(f"step {step}: held-out loss{which} {loss:.4f}  perplexity {perplexity:.2f}  accuracy {accuracy:.4f}")
        if number == 0 and self._rows:
            self._rows[-1]["eval_loss"] = loss
        head = f"validate_{number}/"
        self._scalars(step, {f"{head}loss": loss, f"{head}perplexity": perplexity, f"{head}accuracy": accuracy})

    def close(self) -> None:
        """Write losses.csv and the curve; what was trained until an error is kept too."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._events is not None:
            self._events.close()
        if self.writes and self._rows:
            self._write_csv()
            draw_curve(self._rows, self.model_dir / CURVE_FILE)

    @property
    def tokens_per_second(self) -> float:
        """Over all steps of this run, evaluation and checkpoints left out."""
        return self.tokens / self.training_seconds if self.training_seconds else 0.0

    def flush(self) -> None:
        """Write losses.csv as it stands, so that a run that is killed leaves the losses its checkpoint has."""
        if self.writes and self._rows:
            self._write_csv()

    def _write_csv(self) -> None:
        self.model_dir.mkdir(parents=True, exist_ok=True)
        path = self.model_dir / LOSSES_FILE
        partial = path.with_suffix(".csv.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(self._rows)
        partial.replace(path)

    def _earlier_rows(self) -> list[dict[str, Any]]:
        path = self.model_dir / LOSSES_FILE
        if not self.start or not path.exists():
            return []
        with path.open(newline="") as file:
            rows = [{k: v for k, v in row.items() if k in _COLUMNS} for row in csv.DictReader(file)]
        return [row for row in rows if str(row.get("step", "")).isdigit() and int(row["step"]) <= self.start]

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)


def draw_curve(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw loss and held-out loss by step as a PNG."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([int(r["step"]) for r in rows], [float(r["loss"]) for r in rows], label="training", linewidth=1)
    held_out = [(int(r["step"]), float(r["eval_loss"])) for r in rows if r.get("eval_loss") not in (None, "")]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", label="held out", markersize=3)
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
