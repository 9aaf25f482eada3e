"""Marks that several tests share: what a test needs, and which cases of a long list `make check` runs."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest
import torch

HAS_FSDP = torch.__version__ >= torch.torch_version.TorchVersion("2.6")
needs_fsdp = pytest.mark.skipif(not HAS_FSDP, reason="needs PyTorch 2.6")


def slow_except(fast: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases of a parametrised test, all marked slow but those in `fast`, which must be among them."""
    cases = list(cases)
    assert all(case in cases for case in fast), f"{fast} are not all among the cases"
    return [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in cases]
