"""Contract: HDF5Samples gives the same batches in the same order as the Model Zoo's GptHDF5MapDataProcessor for the
same config, over several epochs, and the Model Zoo accepts the `dataloader` state and goes on where it says."""

import itertools

import h5py
import numpy as np
import pytest

from cerebras_jais.data.dataset import DataParameters, HDF5Samples, write_hdf5

pytestmark = pytest.mark.modelzoo

METADATA = DataParameters(vocab_size=100_000, eos_id=0, pad_id=0)


@pytest.fixture(scope="module")
def processor():
    pytest.importorskip("cerebras.modelzoo")
    from cerebras.modelzoo.data.nlp.gpt.GptHDF5MapDataProcessor import GptHDF5MapDataProcessor

    return lambda **config: GptHDF5MapDataProcessor({"data_processor": "GptHDF5MapDataProcessor", **config})


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory):
    """Sample data of 23, 8 and 9 (VSL) samples in several files, and a corpus of 200 tokens in three."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, count, features in (("a", 23, 3), ("b", 8, 3), ("vsl", 9, 5)):
        rows = rng.integers(0, 99_999, size=(count, features, 6), dtype=np.int32)
        write_hdf5(root / name, rows, samples_per_file=4, metadata=METADATA)
    (root / "corpus").mkdir()
    for name, part in zip("xyz", np.split(rng.integers(0, 60_000, size=200).astype(np.uint16), [90, 97]), strict=True):
        with h5py.File(root / "corpus" / f"{name}.h5", "w") as f:
            f["data"] = part
    return root


def endless(dataloader):
    """The Model Zoo trainer iterates its data loader anew whenever it runs out."""
    while True:
        yield from dataloader


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        assert array.dtype == theirs[name].numpy().dtype
        assert np.array_equal(array, theirs[name].numpy()), name


CASES = {
    "plain": ({"data_dir": "a", "batch_size": 4}, 23),
    "exact": ({"data_dir": "b", "batch_size": 4}, 8),
    "one": ({"data_dir": "a", "batch_size": 1}, 23),
    "whole": ({"data_dir": "a", "batch_size": 23}, 23),
    "two directories": ({"data_dir": ["b", "a"], "batch_size": 5}, 31),
    "short last": ({"data_dir": "a", "batch_size": 4, "drop_last": False}, 23),
    "subset": ({"data_dir": "a", "batch_size": 3, "data_subset": "0.1-0.33,0.5-0.95"}, 15),
    "fewer": ({"data_dir": "a", "batch_size": 4, "num_samples": 10}, 10),
    "more": ({"data_dir": "a", "batch_size": 4, "num_samples": 60}, 60),
    "vsl": ({"data_dir": "vsl", "batch_size": 2, "use_vsl": True}, 9),
    "corpus": ({"data_dir": "corpus", "batch_size": 4, "max_sequence_length": 7}, 28),
    "mixture": ({"mixture": [("a", 3, None), ("b", 0.7, "0.0-0.7")], "batch_size": 4}, 28),
    "mixture with weight 0": ({"mixture": [("b", 0, None), ("a", 2, None), ("b", 1, None)], "batch_size": 4}, 34),
}


def resolve(config, root):
    config = dict(config)
    if isinstance(config.get("data_dir"), list):
        config["data_dir"] = [str(root / name) for name in config["data_dir"]]
    elif "data_dir" in config:
        config["data_dir"] = str(root / config["data_dir"])
    else:
        config["mixture"] = [
            {"data_dir": str(root / name), "weight": weight, **({"data_subset": subset} if subset else {})}
            for name, weight, subset in config["mixture"]
        ]
    return config


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_are_the_model_zoos_over_two_and_a_half_epochs(processor, data_dirs, case, shuffle):
    config, samples = CASES[case]
    config = {**resolve(config, data_dirs), "shuffle": shuffle, "shuffle_seed": 17}
    n_batches = -(-5 * samples // (2 * config["batch_size"]))
    theirs = endless(processor(**config).create_dataloader())
    for ours, their in itertools.islice(zip(HDF5Samples(**config).batches(), theirs, strict=False), n_batches):
        assert_same(ours, their)


@pytest.mark.parametrize("shuffle", [False, True])
def test_padded_batches_are_the_model_zoos_where_they_are_not_padding(processor, data_dirs, shuffle):
    """The Model Zoo leaves the memory of padding rows uninitialised; ours are 0."""
    config = {"data_dir": str(data_dirs / "a"), "batch_size": 4, "shuffle": shuffle, "drop_last": False}
    theirs = itertools.islice(endless(processor(**config, pad_last=True).create_dataloader()), 15)
    for index, (ours, their) in enumerate(zip(HDF5Samples(**config, pad_last=True).batches(), theirs, strict=False)):
        real = 3 if index % 6 == 5 else 4
        assert_same({k: v[:real] for k, v in ours.items()}, {k: v[:real] for k, v in their.items()})


@pytest.mark.parametrize("case", ["plain", "two directories", "vsl", "corpus", "mixture"])
def test_the_model_zoo_goes_on_from_our_state(processor, data_dirs, case):
    config = {**resolve(CASES[case][0], data_dirs), "shuffle": True}
    ours = HDF5Samples(**config)
    consumed = 9  # more than an epoch in some cases
    state = ours.dataloader_state(consumed * config["batch_size"])
    loader = processor(**config).create_dataloader()
    loader.load_state_dict(loader.deaggregate_state_dict(state), strict=True)
    for their, our in itertools.islice(zip(endless(loader), ours.batches(consumed), strict=False), 8):
        assert_same(our, their)


def test_we_go_on_from_the_model_zoos_state(processor, data_dirs):
    config = {"data_dir": str(data_dirs / "a"), "batch_size": 4, "shuffle": True, "shuffle_seed": 2}
    loader = processor(**config).create_dataloader()
    state = loader.aggregate_state_dict([{"samples_streamed": 28, "previous_samples_streamed": 0}])
    ours = HDF5Samples(**config)
    assert ours.dataloader_state(28) == state
    assert ours.start_sample_from(state) == 28
    theirs = itertools.islice(endless(loader), 7, 12)
    for our, their in zip(ours.batches(start_sample=28), theirs, strict=False):
        assert_same(our, their)
