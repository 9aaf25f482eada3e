"""Pickle shards for tests: as torch saves them, and changed behind its back."""

import zipfile

import pytest
import torch

from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.torch_bin import SINGLE, open_bin_model


def save(directory, state, **options):
    torch.save(state, directory / SINGLE, **options)
    return directory / SINGLE


def rewrite(path, change):
    """Write the archive again with Python's zipfile; `change` gets its dict of entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).split("/")[0]
    change(entries, root)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data)


def with_pickle(directory, code):
    """A file that torch saved, with another pickle in it."""
    path = save(directory, {"x": torch.arange(6.0)})
    rewrite(path, lambda entries, root: entries.update({f"{root}/data.pkl": code}))
    return path


def refused(directory, match):
    with pytest.raises(ConversionError, match=match) as caught:
        open_bin_model(directory)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)
    return str(caught.value)
