"""Where the extra `pipeline` is not installed, no module here is collected but those that need nothing of it.

A module that skipped itself would count as a skip of every mark, which `make test-marked` does not allow.
"""

from importlib.util import find_spec

PACKAGES = ("datatrove", "orjson", "pyarrow", "xxhash", "zstandard")
NEED_NOTHING = ("test_installed.py", "test_settings.py", "test_workers.py")
INSTALLED = all(find_spec(package) for package in PACKAGES)


def pytest_ignore_collect(collection_path):
    """Leave out the others."""
    name = collection_path.name
    return True if not INSTALLED and name.startswith("test_") and name not in NEED_NOTHING else None
