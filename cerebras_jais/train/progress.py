"""The records of a run: progress line, TensorBoard events, losses.csv, and the loss curve as a picture."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from cerebras_jais.atomic import replacing
from cerebras_jais.errors import UserError
from cerebras_jais.files import open_regular

LOSSES_FILE = "losses.csv"
CURVE_FILE = "loss_curve.png"
_COLUMNS = ("step", "loss", "learning_rate", "tokens", "seconds", "eval_loss")


class RecordError(UserError):
    """A record of a run that cannot be continued."""


class Reporter:
    """Reports one run; silent processes get `quiet`.

    `flush` writes all that a checkpoint of that moment needs: a run that continues from it begins with these rows, and
    hides what TensorBoard has of later steps.

    Args:
        model_dir: where the files go; made when the first one is written.
        rows: of losses.csv up to the step `start`, from `earlier_rows`.
        begins: the step that the whole run began at; lines and scalars are of every `log_steps` steps from there.
        start: the step that this part of it begins at.
        total: the step it ends at.
        again: whether the evaluation after the last of `rows` is repeated, so that TensorBoard replaces that step.
        tensorboard: whether event files are written.
        events_dir: where they go, `model_dir`/events if None.
    """

    def __init__(
        self,
        model_dir: Path,
        rows: list[dict[str, Any]],
        begins: int,
        start: int,
        total: int,
        *,
        again: bool = False,
        log_steps: int = 1,
        tensorboard: bool = True,
        events_dir: str | Path | None = None,
        quiet: bool = False,
        writes: bool = True,
        stream: TextIO | None = None,
    ):
        self.model_dir, self.total, self.log_steps = model_dir, total, log_steps
        self.begins, self.start = begins, start
        self.quiet, self.writes = quiet, writes
        self.stream = stream or sys.stderr
        self.began = time.perf_counter()
        self.training_seconds = 0.0
        self.tokens = 0
        self._rows = rows
        self._bar: Any = None
        self._events: Any = None
        self._since = (self.began, 0)
        if not quiet and self.stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, file=self.stream, unit="step", dynamic_ncols=True)
        if writes and tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            events = Path(events_dir or model_dir / "events")
            _wait_for_a_later_name(events)
            self._events = SummaryWriter(str(events), purge_step=start if again else start + 1)
            if again and self._is_logged(start):
                self._scalars(start, self._recorded_scalars())

    def log(self, line: str) -> None:
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
        if not self._is_logged(step):
            return
        seconds_before, tokens_before = self._since if self._since[1] else (0.0, 0)
        passed = self.training_seconds - seconds_before
        rate = (self.tokens - tokens_before) / passed if passed > 0 else math.nan
        self._since = (self.training_seconds, self.tokens)
        line = f"loss {loss:.4f}  {rate:,.0f} tokens/s  lr {learning_rate:.3g}"
        if self._bar is not None:
            self._bar.set_postfix_str(line)
        else:
            self.log(f"step {step:>{len(str(self.total))}}/{self.total}  {line}  {self._time_left(step)} left")
        self._scalars(step, {"loss": loss, "learning_rate": learning_rate, "tokens_per_second": rate})

    def _is_logged(self, step: int) -> bool:
        return step == self.total or (self.log_steps > 0 and (step - self.begins) % self.log_steps == 0)

    def _recorded_scalars(self) -> dict[str, float]:
        """The scalars of the last row, as `step` wrote them."""
        last, since = self._rows[-1], [row for row in self._rows if int(row["step"]) > self.begins]
        since = since[-((len(since) - 1) % self.log_steps + 1) if self.log_steps else 0 :]
        tokens, seconds = (sum(float(row[key]) for row in since) for key in ("tokens", "seconds"))
        rate = tokens / seconds if seconds > 0 else math.nan
        return {"loss": float(last["loss"]), "learning_rate": float(last["learning_rate"]), "tokens_per_second": rate}

    def _time_left(self, step: int) -> str:
        """How long the rest takes at the pace so far, evaluations and checkpoints included: H:MM:SS."""
        passed = time.perf_counter() - self.began
        seconds = round(passed / (step - self.start) * (self.total - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def evaluation(self, step: int, number: int, loss: float, perplexity: float, accuracy: float) -> None:
        """Record one evaluation on the held-out data set of this number; `flush` after the last of them."""
        which = f" on set {number}" if number else ""
        self.log(f"step {step}: held-out loss{which} {loss:.4f}  perplexity {perplexity:.2f}  accuracy {accuracy:.4f}")
        if number == 0 and self._rows:
            self._rows[-1]["eval_loss"] = loss
        head = f"validate_{number}/"
        self._scalars(step, {f"{head}loss": loss, f"{head}perplexity": perplexity, f"{head}accuracy": accuracy})

    def close(self) -> None:
        """Write losses.csv and the curve; what was trained until an error is kept too."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self.flush()
        if self._events is not None:
            self._events.close()
        if self.writes and self._rows:
            draw_curve(self._rows, self.model_dir / CURVE_FILE)

    @property
    def tokens_per_second(self) -> float:
        """Over all steps of this run, evaluation and checkpoints left out."""
        return self.tokens / self.training_seconds if self.training_seconds else 0.0

    def flush(self) -> None:
        """Write everything recorded so far to the disk; losses.csv last, whose rows say that the rest is there."""
        if self._events is not None:
            self._events.flush()
        if self.writes and self._rows:
            self.model_dir.mkdir(parents=True, exist_ok=True)
            with replacing(self.model_dir / LOSSES_FILE, overwrite=True) as temporary:
                write_rows(temporary, self._rows)

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)


def earlier_rows(model_dir: Path, step: int) -> list[dict[str, Any]]:
    """The rows of losses.csv up to a step, none where there is no file.

    Raises RecordError for a file that is damaged, which would otherwise only show when the training is done.
    """
    path = model_dir / LOSSES_FILE
    if not step or not path.exists():
        return []
    rows = []
    try:
        with open_regular(path, RecordError) as file:
            for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline="")):
                kept = {name: row[name] for name in _COLUMNS}
                for name, value in kept.items():
                    if value or name != "eval_loss":
                        float(value)
                if int(kept["step"]) <= step:
                    rows.append(kept)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        where = f"after {len(rows)} rows" if rows else "from its first line on"
        raise RecordError(
            f"{path}: cannot be read {where}; restore it, or remove it and the run continues without earlier losses"
        ) from error
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as losses.csv."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def curve_is_current(model_dir: Path) -> bool:
    """Whether the curve was drawn after losses.csv was last written, or there is nothing to draw."""
    losses, curve = model_dir / LOSSES_FILE, model_dir / CURVE_FILE
    return not losses.exists() or (curve.exists() and curve.stat().st_mtime_ns >= losses.stat().st_mtime_ns)


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
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _wait_for_a_later_name(events: Path) -> None:
    """Wait until a new file of events sorts after those there: readers go by names, which begin with the second."""
    seconds = [name.name.split(".")[3] for name in events.glob("events.out.tfevents.*")]
    latest = max((int(second) for second in seconds if second.isdigit()), default=0)
    if latest <= time.time():  # a clock that was set back is not waited for
        while int(time.time()) == latest:
            time.sleep(0.02)
