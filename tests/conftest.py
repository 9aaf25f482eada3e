"""What all tests share: no hub, no caches outside the run, quiet libraries, an empty working directory."""

import atexit
import os
import shutil
import signal
import tempfile

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# transformers copies the code of a release here before it imports it. One place for the whole process: Python keeps
# what it imported from there, so a place of each test's own would vanish under the next one.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="cerebras_jais_tests_")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

# Signals that whoever started the tests ignores (nohup, a job in the background) would be ignored by every program that
# a test starts and ends by a signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def working_directory():
    """An empty directory that no test leaves anything in: what lies where the suite is started changes no result."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="cerebras_jais_cwd_") as directory:
        os.chdir(directory)
        yield directory
        left = os.listdir(directory)
        os.chdir(before)
        assert not left, f"tests left {left} in the working directory; give them a tmp_path"
