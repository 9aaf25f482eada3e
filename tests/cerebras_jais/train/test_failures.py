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


class Ended(BaseException):
    """The end of a process."""


@pytest.fixture
def of_two(monkeypatch):
    """Raise an error in one of two processes, as torchrun starts them; what it lets out."""

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(failures.signal, "signal", lambda *_: None)
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)

    def failed(rank, error, sleep):
        monkeypatch.setattr(time, "sleep", sleep)
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises((Ended, UserError)) as out, first_process_speaks():
            raise error
        return out.value

    return failed


def test_another_process_leaves_the_first_one_time_to_speak(of_two, capfd):
    def ended_by_torchrun(seconds):
        raise Ended(seconds)

    assert isinstance(of_two(0, UserError("x.yaml: is wrong"), ended_by_torchrun), UserError)
    assert of_two(1, UserError("x.yaml: is wrong"), ended_by_torchrun).args == (30.0,)
    # One that the first finds in the store; it ends the group.
    left = explained(UserError("x"), Store(), 1, 2)
    assert of_two(1, left, lambda seconds: None).args == (UserError.status,)
    assert capfd.readouterr() == ("", "")


def test_what_the_first_process_does_not_find_wrong_another_says_itself(of_two, capfd):
    """As where a file is missing on one of two machines, before the processes are together."""
    assert of_two(1, UserError("x.yaml: no such\nfile"), lambda seconds: None).args == (UserError.status,)
    assert capfd.readouterr() == ("", "error: process 1 of 2: x.yaml: no such file\n")
