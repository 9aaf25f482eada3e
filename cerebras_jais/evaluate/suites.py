"""The suites, their tasks and the data sets that these read, as data."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

SUITES = ("card", "arabic", "demo")


@dataclass(frozen=True)
class DataSet:
    """A data set that tasks read; none is bundled.

    Attributes:
        path: its name on the Hugging Face hub.
        origin: who made it, and from what.
        licence: what is known of it; its page on the hub decides.
    """

    path: str
    tasks: tuple[str, ...]
    origin: str
    licence: str

    @property
    def fetch(self) -> str:
        """The command that fetches it for `--data-root DIR`."""
        return f"hf download --repo-type dataset {self.path} --local-dir DIR/{self.path}"


@cache
def tasks_of(suite: str) -> tuple[str, ...]:
    """The tasks of a suite, in the order of the card where they are on it."""
    return tuple(row["task"] for row in read_rows("suites.csv") if row["task"] and suite in row["suites"].split())


@cache
def data_sets() -> tuple[DataSet, ...]:
    """All data sets that the tasks of the suites read."""
    return tuple(
        DataSet(row["path"], tuple(row["tasks"].split()), row["origin"], row["licence"])
        for row in read_rows("data_sets.csv")
    )


def read_rows(name: str) -> list[dict[str, str]]:
    """The rows of a table beside this module."""
    text = (files(__package__) / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
