"""Says that the tests beside this have not run, where the extra `pipeline` is not installed (conftest.py)."""

import pytest

from tests.cerebras_jais.data.recipe.conftest import PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_the_extra_pipeline_is_installed(package):
    pytest.importorskip(package)
