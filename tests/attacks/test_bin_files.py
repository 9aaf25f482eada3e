"""Nothing in a pickle shard ever runs, and damage never gives other tensors.

Contract: no import, call or attribute that a pickle asks for is ever made; a hostile pickle is one ConversionError that
says what it asked for, soon and in little memory; a damaged file is refused or read as torch sees it.
"""

import collections
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from checkpoint_convert.formats.torch_bin import open_bin_model
from tests.attacks import bin as bin_fuzz
from tests.attacks import safetensors as safetensors_fuzz
from tests.attacks.mutations import Subject, attack, from_reader, from_torch, judge
from tests.checkpoint_convert.formats.bin_files import refused, save, with_pickle


@pytest.fixture
def canary(tmp_path):
    """A file that any of the pickles below would make, were it run."""
    return tmp_path / "canary"


class Runs:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_code_in_a_pickle_is_refused_by_name_and_does_not_run(tmp_path, canary):
    command, code = f"touch {canary}", f"open({str(canary)!r}, 'w')"
    for value, name in (
        ({"x": Runs(os.system, command)}, r"'posix\.system'"),
        ({"x": Runs(eval, code)}, r"'__builtin__\.eval'"),
        ({"x": Runs(exec, code)}, r"'__builtin__\.exec'"),
        (Runs(list, Runs(map, eval, (code,))), r"'__builtin__\.list'"),
        (collections.OrderedDict(x=Runs(open, str(canary), "w")), r"'_?io\.open'"),
        (collections.OrderedDict({"x": torch.ones(1), "y": Runs(os.mkdir, str(canary))}), "'posix.mkdir'"),
        ({"x": Runs(torch.load, str(canary))}, r"'torch\.serialization\.load'"),
        ({"x": Runs(__import__, "antigravity")}, r"'__builtin__\.__import__'"),
        (collections.Counter(x=1), r"'collections\.Counter'"),
    ):
        path = save(tmp_path, value)
        assert from_pickle(path) != b""
        refused(tmp_path, name)
        assert not canary.exists()


def from_pickle(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read("pytorch_model/data.pkl")


@pytest.mark.parametrize("function", [os.system, eval])
def test_the_canary_would_sing(tmp_path, canary, function):
    path = save(
        tmp_path, {"x": Runs(function, f"touch {canary}" if function is os.system else f"open({str(canary)!r}, 'w')")}
    )
    pickle.loads(from_pickle(path))
    assert canary.exists()


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\6tQ"


def tensor(
    offset=b"K\0", shape=b"K\6\x85", strides=b"K\1\x85", storage=STORAGE, hooks=b"ccollections\nOrderedDict\n)R"
):
    """A pickle of {"x": a tensor} with its parts as given."""
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + strides + b"\x89" + hooks + b"tR"
    return b"\x80\2}X\1\0\0\0x" + call + b"s."


def test_the_pickle_of_these_tests_is_a_tensor(tmp_path):
    path = with_pickle(tmp_path, tensor())
    assert from_reader(open_bin_model(tmp_path)) == from_torch(torch.load(path, weights_only=True))


@pytest.mark.parametrize(
    ("code", "match"),
    [
        (tensor(offset=b"K\1"), "beyond the data"),
        (tensor(offset=b"J\xff\xff\xff\xff"), "does not fit|do not fit"),
        (tensor(offset=b"\x88"), "in a way"),
        (tensor(shape=b"K\7\x85"), "beyond the data"),
        (tensor(shape=b"J\xff\xff\xff\xff\x85"), "do not fit"),
        (tensor(shape=b"K\2K\3\x86"), "do not fit"),
        (tensor(shape=b"K\2K\3\x86", strides=b"K\1K\2\x86"), "not contiguous"),
        (tensor(shape=b"K\2K\3\x86", strides=b"K\0K\1\x86"), "not contiguous"),
        (tensor(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x7fK\0\x86", strides=b"K\0K\1\x86"), "do not fit"),
        (tensor(shape=b"(" + b"K\1" * 33 + b"t", strides=b"(" + b"K\1" * 33 + b"t"), "do not fit"),
        (tensor(shape=b"\x88\x85"), "nests tuples"),
        (tensor(shape=b"X\1\0\0\x006\x85"), "nests tuples"),
        (tensor(shape=b"K\6"), "in a way"),
        (tensor(hooks=b"}X\1\0\0\0kNs"), "in a way"),
        (tensor(hooks=b"N"), "in a way"),
        (tensor(storage=b"N"), "in a way"),
        (tensor(storage=STORAGE.replace(b"K\6", b"K\7")), "not 7 elements"),
        (tensor(storage=STORAGE.replace(b"K\6", b"\x8a\x08" + b"\xff" * 7 + b"\x7f")), "elements"),
        (tensor(storage=STORAGE.replace(b"Float", b"Double")), "24 bytes"),
        (tensor(storage=STORAGE.replace(b"\x000X", b"\x001X")), "no data for its storage '1'"),
        (tensor(storage=STORAGE.replace(b"X\1\0\0\x000", b"X\x0a\0\0\0../version")), "no data"),
        (tensor(storage=STORAGE.replace(b"cpu", b"cpu").replace(b"X\3\0\0\0cpu", b"X\4\0\0\0meta")), "no data"),
        (tensor(storage=STORAGE.replace(b"storage", b"pointer")), "not a storage"),
        (tensor(storage=b"X\7\0\0\0storageQ"), "not a storage"),
        (tensor(storage=b"K\1Q"), "not a storage"),
        (tensor(storage=b"P0\n"), "instruction b'P'"),
        (tensor() + b"N", "left-over"),
        (tensor()[:-1], "cut short"),
        (b"\x80\2.", "more values than"),
        (b"\x80\2N.", "dict of tensors"),
        (b"\x80\2}N.", "left-over"),
        (b"\x80\2}X\1\0\0\0xNs.", "'x' is not a tensor"),
        (b"\x80\2}q\0X\1\0\0\0xh\0s.", "'x' is not a tensor"),
        (b"\x80\2}X\1\0\0\0xNX\1\0\0\0xNs.", "not a dict"),
        (b"\x80\2}(X\1\0\0\0xNX\1\0\0\0xNu.", "'x' twice"),
        (b"\x80\2}(X\1\0\0\0xu.", "not a dict"),
        (b"\x80\2u.", "more values than"),
        (b"\x80\2}(s.", "more values than"),
        (b"\x80\2h\0.", "has not stored"),
        (b"\x80\2j\xff\xff\xff\xff.", "has not stored"),
        (b"\x80\2}r\xff\xff\xff\xffj\xff\xff\xff\xffX\1\0\0\0xNs.", "left-over|not a tensor"),
        (b"\x80\2\x82\1.", r"instruction b'\\x82'"),  # copyreg's extension codes
        (b"\x80\2\x8b\xff\xff\xff\xff.", r"instruction b'\\x8b'"),  # LONG4 of negative size
        (b"\x80\2\x8a\xff" + b"\1" * 255 + b".", "number of 255 bytes"),
        (b"\x80\2I" + b"9" * 10_000 + b"\n.", "instruction b'I'"),
        (b"\x80\2X\xff\xff\xff\xffx.", "string of 4294967295 bytes"),
        (b"\x80\2X\2\0\0\0\xff\xfe.", "not UTF-8"),
        (b"\x80\2c" + b"a" * 100_000, "without an end"),
        (b"\x80\2c\xff\n\xff\n.", "not UTF-8"),
        (b"\x80\2ccollections\nOrderedDict\nN\x85R.", "collections.OrderedDict in a way"),
        (b"\x80\2ccollections\nOrderedDict\n)\x81.", r"instruction b'\\x81'"),  # NEWOBJ
        (b"\x80\2ctorch\n_utils._rebuild_tensor_v2\n.", "asks for"),
        (b"\x80\2NN\x85R.", "not a function"),
        (b"\x80\2}}X\5\0\0\0helloNsb.", "sets attributes"),
        (b"\x80\2N}X\x09\0\0\0_metadata}sb.", "sets attributes"),
        (b"\x80\2" + b"(" * 1_000_000, "on its stack"),
        (b"\x80\2" + b"N" * 1_000_000, "on its stack"),
        (b"\x80\2)" + b"\x85" * 1_000_000, "nests tuples"),
        (b"\x80\2" + b"}X\1\0\0\0x" * 500_000, "on its stack"),
        (b"\x80\2)q\0" + b"h\0h\0\x86q\0" * 100_000, "nests tuples"),
        (b"\x80\4\x95" + b"\xff" * 8, "protocol 2"),
        (b"\x80\2" + bytes(5 << 20), "more than a model needs"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else value,
)
def test_a_hostile_pickle_is_refused(tmp_path, code, match):
    with_pickle(tmp_path, code)
    refused(tmp_path, match)


def test_one_storage_of_two_element_types_is_refused(tmp_path):
    second = tensor(storage=STORAGE.replace(b"Float", b"Int"))[3:].replace(b"X\1\0\0\0x", b"X\1\0\0\0y")
    with_pickle(tmp_path, tensor()[:-1] + second)
    refused(tmp_path, "two element types")


@pytest.mark.slow
def test_the_largest_pickle_is_followed_in_little_memory(tmp_path):
    attribute = b"}}X\x09\0\0\0_metadataNsq\1b"  # an empty dict, with the attribute that is allowed
    again = (b"h\1r" + struct.pack("<I", place) + b"b" for place in range(2, (4_000_000 - 40) // 8))
    with_pickle(tmp_path, b"\x80\2" + attribute + b"".join(again) + b".")
    tracemalloc.start()
    try:
        assert open_bin_model(tmp_path) == {}
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fuzz", [bin_fuzz, safetensors_fuzz], ids=["bin", "safetensors"])
def test_damaged_files_are_refused_or_read_as_the_library_reads_them(tmp_path, fuzz):
    verdicts = attack(fuzz.make_subject(tmp_path), count=150, seed=7)
    assert set(verdicts) <= {"refused", "same", "confirmed"}
    assert verdicts["refused"] > 50


def test_the_fuzz_programs_see_a_reader_that_is_wrong(tmp_path, monkeypatch):
    subject = bin_fuzz.make_subject(tmp_path)
    case = subject.cases[0]
    original = from_reader(subject.open_model(case))

    def verdict(open_model):
        return judge(Subject((case,), subject.mutate, open_model, subject.read_independently), case, original)

    class Other:
        def read(self):
            return np.zeros(3, np.float32)

    assert verdict(open_bin_model) == "same"
    assert verdict(lambda directory: {"weight": Other()}) == "wrong"
    assert verdict(lambda directory: {}["x"]) == "crash"
    monkeypatch.setattr("tests.attacks.mutations.LIMIT", 0.01)
    assert verdict(lambda directory: time.sleep(600)) == "hang"
