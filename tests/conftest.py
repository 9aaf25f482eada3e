"""What all tests share: no hub, no caches outside the run, quiet libraries."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# transformers copies the code of a release here before it imports it. One place for the whole process: Python keeps
# what it imported from there, so a place of each test's own would vanish under the next one.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="cerebras_jais_tests_")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
