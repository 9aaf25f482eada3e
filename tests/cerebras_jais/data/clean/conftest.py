"""Where datatrove or spaCy is not installed, what compares with them is not collected.

A module that skipped itself would count as a skip of every mark, which `make test-marked` does not allow.
"""

from importlib.util import find_spec

collect_ignore = [] if find_spec("datatrove") and find_spec("spacy") else ["test_against_datatrove.py"]
