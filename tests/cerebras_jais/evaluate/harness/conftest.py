"""Where lm_eval 0.4.13 is not installed, what needs it is not collected: a skip is a failure of `make test-marked`."""

from importlib.metadata import PackageNotFoundError, version

try:
    _has_lm_eval = tuple(map(int, version("lm_eval").split(".")[:3])) >= (0, 4, 13)
except PackageNotFoundError:
    _has_lm_eval = False
collect_ignore = [] if _has_lm_eval else ["test_lm.py", "test_run.py"]
