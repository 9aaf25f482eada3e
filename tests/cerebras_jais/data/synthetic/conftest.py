"""Sources are read with the extra `pipeline`: without it no module here is collected, as in data/recipe."""

from tests.cerebras_jais.data.recipe.conftest import pytest_ignore_collect as pytest_ignore_collect
