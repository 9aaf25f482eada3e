"""Contract: a file appears whole or not at all, and never replaces another unless asked to."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cerebras_jais.checkpoint import CheckpointError, replacing


def _write(
    target: Path,
    *,
    overwrite: bool = False,
    fail_with: BaseException | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    with replacing(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(b"new")
        meanwhile()
        if fail_with is not None:
            raise fail_with


def test_the_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "x.mdl"
    with replacing(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
        assert temporary.parent == tmp_path
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_and_the_error_is_unchanged(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        _write(tmp_path / "x.mdl", fail_with=error())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_refused_before_the_block(tmp_path: Path) -> None:
    target = tmp_path / "x.mdl"
    target.write_bytes(b"old")
    with pytest.raises(CheckpointError, match="exists already"), replacing(target):
        pytest.fail("the block must not run")
    with replacing(target, overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"


def test_a_failed_overwrite_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.mdl"
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match="no"):
        _write(target, overwrite=True, fail_with=ValueError("no"))
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "x.mdl"
    with pytest.raises(CheckpointError, match="exists already"):
        _write(target, meanwhile=lambda: target.write_bytes(b"other"))
    assert target.read_bytes() == b"other"
    assert list(tmp_path.iterdir()) == [target]


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    target = tmp_path / "x.mdl"
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="exists already"), replacing(target):
        pytest.fail("the block must not run")


def test_a_missing_directory_a_directory_and_a_full_disk_are_named(tmp_path: Path) -> None:
    for path, size, message in [
        (tmp_path / "no" / "x.mdl", 0, "does not exist"),
        (tmp_path, 0, "is a directory"),
        (tmp_path / "x.mdl", 1 << 60, "GiB free"),
    ]:
        with pytest.raises(CheckpointError, match=message), replacing(path, size=size):
            pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []
