"""Runs that die or are signalled at a chosen moment, and what a folder holds afterwards."""

import csv
import os

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cerebras_jais.config.trainer import parse_trainer
from cerebras_jais.train import loop as loop_module
from tests.cerebras_jais.train import examples
from tests.cerebras_jais.train.examples import JAIS, train


def trainer_section(folder, model=JAIS, **init):
    """As in the examples, with TensorBoard's events."""
    return examples.trainer_section(folder, model, **{"loggers": [], **init})


def config_of(folder, model=JAIS, **init):
    return parse_trainer(trainer_section(folder, model, **init))


class Killed(BaseException):
    """Stands for the death of the process: nothing in the package catches it."""


def die_before(monkeypatch, owner, name, times=1):
    """Make the call of that number die instead of doing its work; returns a function that mends it."""
    real, left = getattr(owner, name), [times]

    def dying(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, dying)
    return lambda: monkeypatch.setattr(owner, name, real)


def killed(config, monkeypatch, owner, name, times=1, **options):
    """Run until the process dies there; what it would still write on its way out is lost too."""
    mend = die_before(monkeypatch, owner, name, times)
    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Reporter, "close", lambda self: self._events.close())
        with pytest.raises(Killed):
            train(config, **options)
    mend()


def rows(model_dir):
    with (model_dir / "losses.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def scalars(model_dir):
    events = EventAccumulator(str(model_dir / "events")).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "tokens_per_second"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def index(model_dir):
    return [os.path.basename(path) for path in yaml.safe_load((model_dir / "checkpoints_index.yaml").read_text())]


def checkpoints(model_dir):
    return {path.name: path.read_bytes() for path in model_dir.glob("*.mdl")}


def assert_same_run(one, other):
    assert checkpoints(one) == checkpoints(other)
    assert rows(one) == rows(other)
    assert scalars(one) == scalars(other)
    assert index(one) == index(other)
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
