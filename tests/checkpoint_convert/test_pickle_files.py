"""Pickle shards give torch's tensors, and nothing in them ever runs.

Contract: what torch.save writes of a dict of plain tensors is read with every bit that torch.load reads, of every
element type, tied, shared, offset and sharded, beyond 4 GB too; anything else is one ConversionError that names the
file; no import, call or attribute that a pickle asks for is ever made; damage never gives other tensors than torch
sees.
"""

import collections
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from checkpoint_convert.errors import ConversionError
from checkpoint_convert.file_tensors import FileTensor
from checkpoint_convert.pickle_files import INDEX, SINGLE, open_bin_model
from tests.fuzz import bin as bin_fuzz
from tests.fuzz import safetensors as safetensors_fuzz
from tests.fuzz.mutations import Subject, attack, from_reader, from_torch, judge

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
# torch has these since 2.3, and saves them since 2.5
NEW_DTYPES = [] if torch.__version__.startswith("2.4") else ["uint16", "uint32", "uint64"]


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


# ---- what torch writes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES + NEW_DTYPES)
def test_every_element_type_is_what_torch_loads(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2 if dtype == "bool" else 100, (3, 5), generator=generator).to(getattr(torch, dtype))
    path = save(tmp_path, {"x": values})
    assert from_reader(open_bin_model(tmp_path)) == from_torch(torch.load(path, weights_only=True))
    assert all(type(tensor) is FileTensor for tensor in open_bin_model(tmp_path).values())


def test_views_parameters_scalars_and_empty_tensors_are_what_torch_loads(tmp_path):
    base = torch.randn(6, 4)
    path = save(
        tmp_path,
        {
            "rows": base[2:5],
            "flat": base.view(-1)[3:17],
            "parameter": torch.nn.Parameter(torch.randn(2, 3).bfloat16()),
            "asks for a gradient": torch.randn(3, requires_grad=True).detach().requires_grad_(),
            "scalar": base[1, 2],
            "empty": torch.zeros(0, 3),
            "empty in the middle": torch.zeros(3, 0, 2).transpose(0, 2),
            "one": torch.zeros(1),
            "axes of size one": torch.randn(5, 1)[:, None].expand(5, 1, 1).transpose(1, 2),
            "infinite": torch.tensor([float("nan"), float("inf"), -0.0]),
            "المفتاح": torch.ones(2),
        },
    )
    assert from_reader(open_bin_model(tmp_path)) == from_torch(torch.load(path, weights_only=True))


def test_rows_are_read_alone(tmp_path):
    values = torch.randn(7, 3)
    save(tmp_path, {"x": torch.randn(5), "y": values[1:]})
    assert np.array_equal(open_bin_model(tmp_path)["y"].read_rows(2, 5), values[3:6].numpy())


def test_tied_tensors_are_the_same_bytes_of_the_file(tmp_path):
    weight = torch.randn(4, 3)
    save(tmp_path, {"embedding": weight, "head": weight, "tail": weight[2:]})
    found = open_bin_model(tmp_path)
    assert found["embedding"].offset == found["head"].offset
    assert found["tail"].offset == found["head"].offset + 2 * 3 * 4


def test_a_module_s_state_dict_is_read_past_the_versions_of_its_modules(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    save(tmp_path, model.state_dict())
    assert from_reader(open_bin_model(tmp_path)) == from_torch(model.state_dict())


def test_a_dict_of_thousands_of_tensors_is_read_in_order(tmp_path):
    state = {f"layer.{number}.weight": torch.tensor([number]) for number in range(2500)}  # picklers go by 1,000
    save(tmp_path, state)
    assert list(open_bin_model(tmp_path)) == list(state)
    assert from_reader(open_bin_model(tmp_path)) == from_torch(state)


def test_places_beyond_4_gigabytes_are_found(tmp_path):
    serialization = pytest.importorskip("torch.serialization")
    if not hasattr(serialization, "skip_data"):
        pytest.skip("this torch writes no sparse files")
    state = {"first": torch.ones(3), "large": torch.empty((5 << 30) // 4), "last": torch.ones(4096)}
    with serialization.skip_data():  # room for the data, which stays a hole in the file
        path = save(tmp_path, state)
    size = path.stat().st_size
    assert size > 5 << 30
    with open(path, "r+b") as file:
        file.seek(open_bin_model(tmp_path)["last"].offset)
        file.write(struct.pack("<4f", 1, 2, 3, 4))
    found = open_bin_model(tmp_path)
    assert path.stat().st_size == size and found["large"].shape == ((5 << 30) // 4,)
    assert found["last"].offset > 5 << 30
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data/2"))
        assert archive.open(name).read(16) == found["last"].read_rows(0, 4).tobytes() == struct.pack("<4f", 1, 2, 3, 4)


@pytest.mark.slow  # transformers takes long to import
def test_shards_that_transformers_writes_are_what_it_loads(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    try:
        model.save_pretrained(tmp_path, safe_serialization=False, max_shard_size="10KB")
    except TypeError:
        pytest.skip("this transformers writes safetensors alone")
    if not (tmp_path / INDEX).is_file():
        pytest.skip("this transformers writes safetensors alone")
    assert len(list(tmp_path.glob("*.bin"))) > 1
    assert from_reader(open_bin_model(tmp_path)) == from_torch(model.state_dict())


def sharded(directory):
    state = {f"layer.{number}.{kind}": torch.randn(2, 3) for number in (1, 2) for kind in ("weight", "bias")}
    weight_map = {name: f"pytorch_model-{name.split('.')[1]}-of-2.bin" for name in state}
    for shard in set(weight_map.values()):
        torch.save({name: state[name] for name in state if weight_map[name] == shard}, directory / shard)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return state, weight_map


def test_shards_come_back_through_the_index_in_its_order(tmp_path):
    state, weight_map = sharded(tmp_path)
    assert list(open_bin_model(tmp_path)) == list(weight_map)
    assert from_reader(open_bin_model(tmp_path)) == from_torch(state)


@pytest.mark.parametrize("shard", ["../x.bin", "/etc/passwd", "a/b.bin", "..", ".", ""])
def test_an_index_cannot_point_outside_its_directory(tmp_path, shard):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": shard}}))
    refused(tmp_path, "plain name")


@pytest.mark.parametrize("shard", ["a\0b", "\ud800", "x" * 5000, "absent.bin"])
def test_a_shard_that_cannot_be_opened_is_refused(tmp_path, shard):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(ConversionError, match="cannot be read"):
        open_bin_model(tmp_path)


def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path):
    _, weight_map = sharded(tmp_path)
    more = weight_map | {"more": weight_map["layer.1.bias"]}
    less = {name: shard for name, shard in weight_map.items() if name != "layer.2.bias"}
    for wrong, name in ((more, "more"), (less, "layer.2.bias")):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": wrong}))
        refused(tmp_path, name)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": ["x"]}))
    refused(tmp_path, "weight_map")


def test_a_shard_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "pipe"}}))
    refused(tmp_path, "not a regular file")


def test_a_directory_without_weights_is_refused(tmp_path):
    refused(tmp_path, "pytorch_model.bin")


# ---- what is not a dict of plain tensors ----------------------------------------------------------------------------


class Attributed(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"x": torch.randn(3, 2).t()}, "'x' is a view that is not contiguous"),
        ({"x": torch.randn(4, 4)[:, :2]}, "'x' is a view that is not contiguous"),
        ({"x": torch.randn(1, 3).expand(2, 3)}, "'x' is a view that is not contiguous"),
        ({"x": torch.randn(4)[::2]}, "'x' is a view that is not contiguous"),
        ({"x": torch.zeros(2, dtype=torch.complex64)}, "ComplexFloatStorage"),
        ({"x": torch.zeros(2, dtype=torch.float8_e4m3fn)}, "float8_e4m3fn|Float8"),
        ({"x": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "rebuild_qtensor"),
        ({"x": torch.zeros(2, dtype=torch.complex64).conj().imag}, "rebuild_tensor_v2"),
        ({"x": torch.zeros(2, device="meta")}, "rebuild_meta_tensor"),
        ({"x": torch.eye(2).to_sparse()}, "sparse"),
        ({"x": torch.ones(2).as_subclass(Attributed)}, "_rebuild_from_type_v2"),
        ({"model": {"x": torch.ones(2)}, "step": 3}, "'model' is not a tensor"),
        ({"x": torch.ones(2), "step": 3}, "'step' is not a tensor"),
        ({"x": torch.ones(2), "name": "jais"}, "'name' is not a tensor"),
        ({"x": torch.ones(2), "rate": 0.5}, "instruction"),
        ({"x": [torch.ones(2)]}, "instruction"),
        ({1: torch.ones(2)}, "not a name"),
        (torch.ones(2), "dict of tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_but_a_dict_of_plain_tensors_is_refused_by_name(tmp_path, state, match):
    save(tmp_path, state)
    message = refused(tmp_path, match)
    assert "save it as safetensors" in message


def test_other_forms_of_torch_files_are_refused(tmp_path):
    save(tmp_path, {"x": torch.ones(2)}, _use_new_zipfile_serialization=False)
    refused(tmp_path, "before torch 1.6")
    save(tmp_path, {"x": torch.ones(2)}, pickle_protocol=4)
    refused(tmp_path, "protocol 2")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / SINGLE))
    refused(tmp_path, "TorchScript|packed")


def test_archives_that_torch_would_not_write_are_refused(tmp_path):
    path = save(tmp_path, {"x": torch.arange(6.0)})
    whole = path.read_bytes()

    path.write_bytes(whole[:-2] + b"\5\0extra")
    refused(tmp_path, "does not end")
    path.write_bytes(b"#!/bin/sh\n" + whole)
    refused(tmp_path, "not an archive")
    path.write_bytes(whole + whole)
    refused(tmp_path, "does not end")

    def change(entries, root, **contents):
        entries.update({f"{root}/{name}": data for name, data in contents.items()})

    for contents, match in (
        ({"byteorder": b"big"}, "little-endian"),
        ({"version": b"11\n"}, "version"),
        ({"constants.pkl": b""}, "TorchScript"),
        ({"data/0": bytes(23)}, "23 bytes"),
        ({"data/0": bytes(28)}, "28 bytes"),
        ({"data.pkl": b""}, "protocol 2"),
    ):
        path.write_bytes(whole)
        rewrite(path, lambda entries, root, contents=contents: change(entries, root, **contents))
        refused(tmp_path, match)
    for name in ("data.pkl", "data/0", "version"):
        path.write_bytes(whole)
        rewrite(path, lambda entries, root, name=name: entries.pop(f"{root}/{name}"))
        refused(tmp_path, "no entry|no data for its storage '0'")
    path.write_bytes(whole)
    rewrite(path, lambda entries, root: entries.update({"elsewhere/x": b""}))
    refused(tmp_path, "one folder")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"x" * 1000)
    refused(tmp_path, "packed or encrypted")
    path.write_bytes(whole)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0], b"")
    refused(tmp_path, "twice")


def test_entries_that_overlap_are_refused(tmp_path):
    path = save(tmp_path, {"x": torch.ones(4), "y": torch.zeros(4)})
    rewrite(path, lambda entries, root: None)  # zipfile leaves no room between entries
    with zipfile.ZipFile(path) as archive:
        first, second = (archive.getinfo(f"pytorch_model/data/{key}").header_offset for key in "01")
    data = bytearray(path.read_bytes())
    before = 30 + len("pytorch_model/data/0")
    struct.pack_into("<H", data, first + 28, second - first - before)  # an extra field up to the next entry's header
    path.write_bytes(data)
    refused(tmp_path, "overlap")


def test_entries_that_differ_in_case_alone_are_refused(tmp_path):
    path = save(tmp_path, {"x": torch.ones(4)})
    rewrite(path, lambda entries, root: entries.update({f"{root}/DATA/0": bytes(16)}))
    refused(tmp_path, "twice")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = save(tmp_path, {"x": torch.arange(60.0)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "fetch it again" in refused(tmp_path, "pytorch_model.bin")


# ---- what is hostile ------------------------------------------------------------------------------------------------


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
        (b"\x80\2h\0.", "has not given"),
        (b"\x80\2j\xff\xff\xff\xff.", "has not given"),
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
        (b"\x80\2" + b"(" * 1_000_000, "piles up"),
        (b"\x80\2" + b"N" * 1_000_000, "piles up"),
        (b"\x80\2)" + b"\x85" * 1_000_000, "nests tuples"),
        (b"\x80\2" + b"}X\1\0\0\0x" * 500_000, "piles up"),
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
    monkeypatch.setattr("tests.fuzz.mutations.LIMIT", 0.1)
    assert verdict(lambda directory: time.sleep(5)) == "hang"
