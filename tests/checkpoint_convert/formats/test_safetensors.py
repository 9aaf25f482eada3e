"""Our safetensors files are safetensors files, and damaged ones are refused.

Contract: what we write the safetensors library reads with every bit, and the other way round, in every element type;
shards and index agree; a file that is truncated, has holes, overlaps or lies about shapes is one clear error.
"""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.safetensors import (
    INDEX,
    create_shards,
    file_tensors,
    open_model,
    plan_shards,
    read_header,
)
from checkpoint_convert.formats.tensors import TensorHeader
from tests.checkpoint_convert.examples import to_numpy

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.bias": np.array([1.5, -0.0, np.nan], dtype=ml_dtypes.bfloat16),
    "c": np.array([[1], [2]], dtype=np.float16),
    "d": np.array(7, dtype=np.int64),
    "e": np.array([True, False, True]),
    "empty": np.zeros((0, 4), np.float32),
}


def write(directory, arrays, max_shard_size=10**9):
    shards = plan_shards([TensorHeader(n, a.shape, a.dtype.name) for n, a in arrays.items()], max_shard_size)
    create_shards(directory, shards)
    for name, place in file_tensors(directory, shards).items():
        with open(place.path, "r+b") as file:
            file.seek(place.offset)
            file.write(arrays[name].tobytes())
    return directory


def bits(array):
    return array.dtype.name, array.shape, array.tobytes()


def test_the_library_reads_what_we_write(tmp_path):
    write(tmp_path, ARRAYS)
    loaded = load_file(tmp_path / "model-00001-of-00001.safetensors")
    assert {n: bits(to_numpy(t)) for n, t in loaded.items()} == {n: bits(a) for n, a in ARRAYS.items()}


def test_we_read_what_the_library_writes(tmp_path):
    tensors = {"x": torch.randn(5, 3).bfloat16(), "y": torch.arange(4), "z": torch.randn(2, 2)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = open_model(tmp_path)
    assert {n: bits(t.read()) for n, t in found.items()} == {n: bits(to_numpy(t)) for n, t in tensors.items()}
    assert bits(found["x"].read_rows(1, 4)) == bits(to_numpy(tensors["x"][1:4]))
    assert bits(found["x"].read_columns(1, 3)) == bits(to_numpy(tensors["x"][:, 1:3]))


def test_shards_hold_at_most_their_size_and_come_back_through_the_index(tmp_path):
    write(tmp_path, ARRAYS, max_shard_size=32)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in ARRAYS.values())
    assert len(set(index["weight_map"].values())) > 1
    assert {n: bits(t.read()) for n, t in open_model(tmp_path).items()} == {n: bits(a) for n, a in ARRAYS.items()}
    for file in set(index["weight_map"].values()):
        inside = read_header(tmp_path / file).values()
        assert len(inside) == 1 or sum(t.nbytes for t in inside) <= 32


def test_every_tensor_begins_at_a_multiple_of_its_element(tmp_path):
    write(tmp_path, ARRAYS)
    for tensor in open_model(tmp_path).values():
        assert tensor.offset % tensor.read().dtype.itemsize == 0


def test_tensors_of_whole_blocks_of_the_disk_begin_at_one(tmp_path):
    arrays = {
        "small": np.ones(3, "f4"),
        "b": np.ones((512, 8), "f2"),
        "one": np.ones(1, "f8"),
        "a": np.ones(1024, "f4"),
    }
    write(tmp_path, arrays)
    found = open_model(tmp_path)
    assert {name for name, tensor in found.items() if tensor.offset % 4096 == 0} >= {"a", "b"}
    assert all(tensor.offset % arrays[name].itemsize == 0 for name, tensor in found.items())


@pytest.mark.parametrize("length", [0, 4, 8, 20, 200, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    write(tmp_path, ARRAYS)
    path = tmp_path / "model-00001-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ConversionError, match="model-00001"):
        open_model(tmp_path)


def damaged(path, header):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))


ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "header",
    [
        {"x": ENTRY | {"shape": [5]}},
        {"x": ENTRY | {"data_offsets": [8, 24]}},
        {"x": ENTRY | {"data_offsets": [16, 0]}},
        {"x": ENTRY | {"shape": [-4]}},
        {"x": ENTRY | {"shape": [True, 4]}},
        {"x": ENTRY | {"dtype": "F8_E4M3"}},
        {"x": ENTRY | {"dtype": 3}},
        {"x": ENTRY, "y": ENTRY},
        {"x": ENTRY, "y": ENTRY | {"shape": [0, 1 << 63], "data_offsets": [16, 16]}},
        {"x": ENTRY, "__metadata__": {"format": 1}},  # the library takes a mapping of texts
        {"x": ENTRY, "__metadata__": []},
        {"x": 3},
        {},
        json.dumps({"x": ENTRY}).encode("utf-16"),
        b'{"x": 1, "x": 1}',
        b"[]",
        b"{",
        b'{"x":' * 3000,
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header):
    damaged(tmp_path / "model.safetensors", header)
    with pytest.raises(ConversionError, match=r"model\.safetensors"):
        open_model(tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_an_index_cannot_point_outside_its_directory(tmp_path, shard):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(ConversionError, match="plain name"):
        open_model(tmp_path)


def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path):
    write(tmp_path, ARRAYS)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["more"] = "model-00001-of-00001.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ConversionError, match="more"):
        open_model(tmp_path)


def test_pickled_weights_are_refused_with_the_reason(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ConversionError, match="pickle"):
        open_model(tmp_path)


@pytest.mark.parametrize("shard", ["a\0b", "\ud800", "x" * 5000])
def test_a_shard_name_that_no_file_can_have_is_refused(tmp_path, shard):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(ConversionError, match="cannot be read"):
        open_model(tmp_path)


def test_a_shard_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "pipe"}}))
    with pytest.raises(ConversionError, match="not a regular file"):
        open_model(tmp_path)
