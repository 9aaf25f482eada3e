"""What all tests share: no hub, no caches outside the run, quiet libraries, an empty working directory."""

import atexit
import os
import random
import shutil
import signal
import sys
import tempfile
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes is the machine's affair, and another test may keep it busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# transformers copies the code of a release here before it imports it. One place for the whole process: Python keeps
# what it imported from there, so a place of each test's own would vanish under the next one.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="cerebras_jais_tests_")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

_SUITE = os.getpid()


def end_the_session(number, frame):
    """End the fixtures and remove what was made for the session, before the process ends."""
    if os.getpid() != _SUITE:  # a process that a test has forked
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    pytest.exit(f"ended by {signal.Signals(number).name}", returncode=128 + number)


# Signals that whoever started the tests ignores (nohup, a job in the background) would be ignored by every program that
# a test starts and ends by a signal. Those that have a handler here have none in such a program.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, end_the_session)
signal.signal(signal.SIGHUP, end_the_session)


def skip_without_gpu():
    """Skip a test of the mark `gpu`, or forget the kernels that tests before it compiled."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU is visible to PyTorch")
    torch.compiler.reset()  # PyTorch compiles a function for eight kinds of arguments, and then no more


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Seed what a test and its fixtures draw without a seed of their own, so that no test before changes it."""
    if item.get_closest_marker("gpu"):
        skip_without_gpu()
    random.seed(0)
    for library, seed in (("numpy.random", "seed"), ("torch", "manual_seed")):
        if library in sys.modules:
            getattr(sys.modules[library], seed)(0)


@pytest.fixture(autouse=True)
def handlers_of_signals():
    """Put back those that a program replaces where a test runs it in this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def temporary_directory(tmp_path_factory):
    """One for whatever this process and those that it starts put into the system's: reports of errors, caches."""
    tmp_path_factory.getbasetemp()  # this one stays in the system's: it keeps the files of tests that failed
    with (
        tempfile.TemporaryDirectory(prefix="cerebras_jais_tmp_", ignore_cleanup_errors=True) as directory,
        mock.patch.dict(os.environ, TMPDIR=directory),
        mock.patch.object(tempfile, "tempdir", directory),
    ):
        yield directory


@pytest.fixture(scope="session", autouse=True)
def working_directory(temporary_directory):
    """An empty directory that no test leaves anything in: what lies where the suite is started changes no result."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="cwd_") as directory:
        os.chdir(directory)
        yield directory
        left = os.listdir(directory)
        os.chdir(before)
        assert not left, f"tests left {left} in the working directory; give them a tmp_path"
