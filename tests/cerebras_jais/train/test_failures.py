"""Of several processes only the first speaks, for whichever has failed.

Contract: an error of another process reaches the first through the store, and is said in place of the broken
connection; without one the first says that a process has ended. What all processes find alike stays what it is.
"""

import os
import time

import pytest

from cerebras_jais.errors import UserError
from cerebras_jais.launch.plan import NothingLeft
from cerebras_jais.train import failures
from cerebras_jais.train.failures import explained, first_process_speaks
from cerebras_jais.train.signals import Stopped

BROKEN = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:29500")


class Store:
    """As far as torch.distributed.Store is used."""

    def __init__(self):
        self.held = {}

    def set(self, key, value):
        self.held[key] = value.encode()

    def check(self, keys):
        return all(key in self.held for key in keys)

    def get(self, key):
        return self.held[key]


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(failures, "_FOR_A_LINE", 0.0)


@pytest.mark.parametrize("of_the_first", [BROKEN, Stopped("stopped by SIGTERM", 15)], ids=["broken", "stopped"])
def test_the_first_process_says_what_another_has_left(of_the_first):
    store = Store()
    explained(UserError("a.mdl: is\ndamaged"), store, 2, 4)
    found = explained(of_the_first, store, 0, 4)
    assert isinstance(found, UserError) and str(found) == "process 2 of 4: a.mdl: is damaged"


def test_a_process_that_died_without_a_word_is_told_by_the_broken_connection():
    assert "another process of the run has ended" in str(explained(BROKEN, Store(), 0, 4))


def test_an_error_of_the_first_process_stays_what_it_is():
    for error in (UserError("x"), ValueError("x"), RuntimeError("shapes do not fit"), KeyboardInterrupt()):
        assert explained(error, Store(), 0, 4) is error


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_that_is_complete_is_no_failure(rank):
    store, error = Store(), NothingLeft("run", "nothing is left to train")
    assert explained(error, store, rank, 4) is error
    assert not store.held


def test_another_process_than_the_first_ends_without_a_word(monkeypatch, capfd):
    class Ended(BaseException):
        pass

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(failures.signal, "signal", lambda *_: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, raised in (("1", Ended), ("0", UserError)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(raised), first_process_speaks():
            raise UserError("x.yaml: is wrong")
    assert capfd.readouterr() == ("", "")
