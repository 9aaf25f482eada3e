"""Contract: what is read can be written again: a number that JSON does not have is refused, and names the file."""

import pytest

from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.json_files import json_text, read_json


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_is_not_finite_is_refused_by_file(tmp_path, number):
    path = tmp_path / "tokenizer_config.json"
    path.write_text(f'{{"chat_template": "x", "a": [{number}]}}')
    with pytest.raises(ConversionError) as error:
        read_json(path)
    assert str(error.value) == f"{path}: its JSON cannot be read: '{number}' is no number of JSON"


def test_finite_numbers_are_read_as_they_are(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": [1e-5, -2.5, 1e30, 7]}')
    assert read_json(path) == {"a": [1e-5, -2.5, 1e30, 7]}
    path.write_text(json_text(read_json(path)))
    assert read_json(path) == {"a": [1e-5, -2.5, 1e30, 7]}
