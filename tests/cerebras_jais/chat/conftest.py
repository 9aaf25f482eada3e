"""The browser that the tests of the page share."""

import pytest

from tests.cerebras_jais.chat.browser import chromium


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started
