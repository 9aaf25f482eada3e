"""Contract: what was added is there after any kill, a torn last line apart, and only one process writes a record."""

import errno
import hashlib
import os

import pytest

from cerebras_jais.endpoint import record as module
from cerebras_jais.endpoint.record import keys_in, open_record
from cerebras_jais.errors import UserError

KEYS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(3)]
ENTRIES = [{"text": text} for text in ("a\nb\u2028", "ج" * 20_000, "")]


def write(path):
    """A record of three entries."""
    with open_record(path) as record:
        for key, entry in zip(KEYS, ENTRIES, strict=True):
            record.add(key, entry)
    return path


def test_entries_are_found_by_their_keys_also_later(tmp_path):
    with open_record(write(tmp_path / "r")) as record:
        assert [record[key]["text"] for key in KEYS] == [entry["text"] for entry in ENTRIES]
        assert len(record) == 3
        assert "0" * 64 not in record
    assert keys_in(tmp_path / "r") == set(map(bytes.fromhex, KEYS))
    assert keys_in(tmp_path / "none") == set()


def test_a_torn_last_line_is_cut_wherever_it_was_torn(tmp_path):
    whole = write(tmp_path / "r").read_bytes()
    first = whole.index(b"\n") + 1
    for end in [*range(first + 1, first + 120), len(whole) - 1]:
        (tmp_path / "r").write_bytes(whole[:end])
        with open_record(tmp_path / "r") as record:
            kept = whole.count(b"\n", 0, end)
            assert [key in record for key in KEYS] == [number < kept for number in range(3)]
            for key, entry in list(zip(KEYS, ENTRIES, strict=True))[kept:]:
                record.add(key, entry)
        assert (tmp_path / "r").read_bytes() == whole


def test_damage_before_the_end_is_named_with_its_line(tmp_path):
    lines = write(tmp_path / "r").read_bytes().split(b"\n")
    for damaged in (b"{", b"[]", b'{"key": 1}', b'{"key": "x"}', b"\xff", b""):
        (tmp_path / "r").write_bytes(b"\n".join([lines[0], damaged, *lines[2:]]))
        with pytest.raises(UserError, match=r"r:2: is no line of a record"), open_record(tmp_path / "r"):
            pass


def test_a_record_in_use_is_refused(tmp_path):
    with open_record(tmp_path / "r"), pytest.raises(UserError, match="another process"), open_record(tmp_path / "r"):
        pass


def test_a_full_disk_leaves_a_record_as_it_was_and_it_goes_on_once_there_is_room(tmp_path, monkeypatch):
    path = write(tmp_path / "r")
    before = path.read_bytes()
    with open_record(path) as record:
        real = os.pwrite

        def half(file, content, place):
            if place > len(before):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(file, content[: len(content) // 2], place)

        monkeypatch.setattr(module.os, "pwrite", half)
        with pytest.raises(OSError, match="No space") as raised:
            record.add("f" * 64, {"text": "x"})
        assert raised.value.filename == str(path)
        monkeypatch.undo()
        assert path.read_bytes() == before
        record.add("f" * 64, {"text": "y"})
        assert record["f" * 64]["text"] == "y"


def test_nothing_is_added_to_a_closed_record(tmp_path):
    with open_record(tmp_path / "r") as record:
        pass
    record.add(KEYS[0], ENTRIES[0])
    assert (tmp_path / "r").read_bytes() == b""


def test_a_record_that_is_cut_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "record"
    with open_record(path) as record:
        record.add(KEYS[0], {"text": "long " * 10_000})
        os.truncate(path, 20_000)
        with pytest.raises(UserError, match=r"record: was cut while it was in use"):
            record[KEYS[0]]
