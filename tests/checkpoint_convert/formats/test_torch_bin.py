"""Pickle shards give torch's tensors, and what is not a dict of tensors is refused.

Contract: what torch.save writes of a dict of plain tensors is read with every bit that torch.load reads, of every
element type, tied, shared, offset and sharded, beyond 4 GB too; anything else is one ConversionError that names the
file. What is hostile or damaged: tests/attacks/test_bin_files.py.
"""

import json
import os
import struct
import zipfile

import numpy as np
import pytest
import torch

from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.tensors import FileTensor
from checkpoint_convert.formats.torch_bin import INDEX, SINGLE, open_bin_model
from tests.attacks.mutations import from_reader, from_torch
from tests.checkpoint_convert.formats.bin_files import refused, rewrite, save

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
# torch has these since 2.3, and saves them since 2.5
NEW_DTYPES = [] if torch.__version__.startswith("2.4") else ["uint16", "uint32", "uint64"]


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


@pytest.mark.slow
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
    refused(tmp_path, "TorchScript|compressed")


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
    refused(tmp_path, "compressed or encrypted")
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
    assert "download it again" in refused(tmp_path, "pytorch_model.bin")
