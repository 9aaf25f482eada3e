"""Contract: what is written has the Model Zoo's layout and reads back in order; batches can be asked for at any
step; data that does not fit is an error that names the file and leaves nothing behind."""

import json

import h5py
import numpy as np
import pytest

from cerebras_jais.data.dataset import DataParameters, HDF5Samples, write_hdf5
from cerebras_jais.data.documents import DataError
from cerebras_jais.data.packing import pack_stream, pack_vsl
from tests.cerebras_jais.data.stores import store_of

METADATA = DataParameters(
    vocab_size=5000, eos_id=0, pad_id=0, source="here", documents=3, raw_bytes=77, raw_characters=50
)


def numbered_rows(count, length=4, features=3):
    """Rows whose first token is the number of the row."""
    rows = np.ones((count, features, length), dtype=np.int32)
    rows[:, 0, 0] = np.arange(count)
    return rows


def epoch_of(samples):
    """The batches of the first epoch."""
    return [samples.batch(index) for index in range(samples.batches_per_epoch)]


@pytest.fixture
def data_dir(tmp_path):
    write_hdf5(tmp_path / "d", numbered_rows(23), samples_per_file=7, metadata=METADATA)
    return tmp_path / "d"


def numbers(batch):
    return batch["input_ids"][:, 0].tolist()


def test_rows_of_several_files_are_read_by_the_filters_of_hdf5_itself(tmp_path):
    rows = np.random.default_rng(0).integers(0, 2**31 - 1, (90, 3, 1000), dtype=np.int32)
    write_hdf5(tmp_path / "d", iter(rows), samples_per_file=40, metadata=DataParameters(2**31 - 1, 0, 0))
    files = sorted((tmp_path / "d").glob("*.h5"))
    read = []
    for file in files:
        with h5py.File(file) as opened:
            assert (opened["data"].shuffle, opened["data"].compression_opts) == (True, 1)
            read.append(opened["data"][:])
    assert [len(part) for part in read] == [40, 40, 10]
    np.testing.assert_array_equal(np.concatenate(read), rows)


@pytest.mark.slow
def test_files_have_the_model_zoo_layout(tmp_path):
    packed = pack_vsl(store_of([range(1, 20), [5, 6, 7]], 0), 8, 0)
    assert write_hdf5(tmp_path / "new" / "d", packed, samples_per_file=2, metadata=METADATA) == 3
    files = sorted((tmp_path / "new" / "d").iterdir())
    assert [f.name for f in files] == ["data_params.json", "output_chunk_000000.h5", "output_chunk_000001.h5"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["d"]
    with h5py.File(files[1]) as f:
        assert list(f) == ["data"]
        assert f["data"].dtype == np.int32
        assert (f["data"].shape, f["data"].chunks, f["data"].compression) == ((2, 5, 8), (1, 5, 8), "gzip")
        assert f.attrs["n_examples"] == 2
    params = json.loads(files[0].read_text())
    assert params["features"] == ["input_ids", "attention_mask", "labels", "attention_span", "position_ids"]
    assert params["dataset"]["use_vsl"] is True
    processing = params["processing"]
    assert {k: processing[k] for k in ("pad_id", "eos_id", "vocab_size", "max_seq_length")} == {
        "pad_id": 0,
        "eos_id": 0,
        "vocab_size": 5000,
        "max_seq_length": 8,
    }
    stats = params["post-process"]
    assert (stats["n_examples"], stats["num_tokens"], stats["loss_valid_tokens"], stats["num_pad_tokens"]) == (
        3,
        24,
        22,
        2,
    )
    assert (stats["raw_bytes_count"], stats["average_bytes_per_sequence"]) == (77, 26)


@pytest.mark.slow
def test_reading_returns_what_was_written(tmp_path):
    rows = np.stack(list(pack_stream(store_of([range(1, 100)], 0), 8, 0)))
    write_hdf5(tmp_path / "d", rows, samples_per_file=5, metadata=METADATA)
    samples = HDF5Samples(tmp_path / "d", batch_size=3)
    assert (len(samples), samples.sequence_length) == (len(rows), 8)
    read = samples.read(np.array([12, 0, 4, 5, 6, 0]))
    for i, name in enumerate(("input_ids", "attention_mask", "labels")):
        assert read[name].dtype == np.int32
        assert read[name].flags.c_contiguous
        assert np.array_equal(read[name], rows[[12, 0, 4, 5, 6, 0], i])
    samples.close()
    assert np.array_equal(samples.read(np.array([1]))["labels"], rows[[1], 2])


@pytest.mark.slow
def test_leftovers_of_an_epoch_begin_the_next(data_dir):
    batches = HDF5Samples(data_dir, batch_size=5).batches()
    read = [n for _ in range(10) for n in numbers(next(batches))]
    assert read == [i % 23 for i in range(50)]


@pytest.mark.slow
@pytest.mark.parametrize(("drop_last", "num_samples"), [(True, None), (False, None), (True, 40), (False, 9)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_starting_late_gives_the_same_batches(data_dir, shuffle, drop_last, num_samples):
    samples = HDF5Samples(data_dir, 5, shuffle, 11, drop_last, num_samples=num_samples)
    whole = [numbers(b) for b, _ in zip(samples.batches(), range(20), strict=False)]
    for start in (0, 1, 7, 19):
        again = HDF5Samples(data_dir, 5, shuffle, 11, drop_last, num_samples=num_samples)
        assert numbers(next(again.batches(start))) == whole[start]
        if drop_last:  # counted in samples, the batch size may change
            other = HDF5Samples(data_dir, 10, shuffle, 11, drop_last, num_samples=num_samples)
            assert numbers(next(other.batches(start_sample=5 * start)))[:5] == whole[start]


@pytest.mark.slow
def test_each_shuffled_epoch_is_another_permutation(data_dir):
    samples = HDF5Samples(data_dir, 23, shuffle=True, shuffle_seed=3)
    epochs = [numbers(b) for b, _ in zip(samples.batches(), range(3), strict=False)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.slow
def test_shuffled_order_is_pinned():
    """torch.randperm seeded with seed + epoch is the Model Zoo's order; a torch that changed it would show here."""
    from cerebras_jais.data.order import SampleOrder

    order = SampleOrder(10, 10, shuffle=True, shuffle_seed=5)
    assert order.batch_indices(0).tolist() == [1, 4, 9, 6, 3, 5, 0, 2, 8, 7]


@pytest.mark.slow
def test_ranks_share_the_global_batch_in_order(data_dir):
    samples = HDF5Samples(data_dir, 6, shuffle=True)
    whole = samples.batch(3)
    for ranks, sizes in [(3, [2, 2, 2]), (4, [1, 2, 1, 2]), (9, [0, 1, 1, 0, 1, 1, 0, 1, 1])]:
        parts = [samples.batch(3, rank=rank, world_size=ranks) for rank in range(ranks)]
        assert [len(part["labels"]) for part in parts] == sizes
        for name in samples.features:
            assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])


@pytest.mark.slow
def test_short_last_batch_is_kept_or_padded(data_dir):
    kept = epoch_of(HDF5Samples(data_dir, 5, drop_last=False))
    assert [len(b["labels"]) for b in kept] == [5, 5, 5, 5, 3]
    padded = epoch_of(HDF5Samples(data_dir, 5, drop_last=False, pad_last=True))
    assert [len(b["labels"]) for b in padded] == [5] * 5
    assert numbers(padded[-1]) == [20, 21, 22, 0, 0]
    assert padded[-1]["attention_mask"][3:].sum() == 0
    ranks = [HDF5Samples(data_dir, 6, drop_last=False, pad_last=True).batch(3, rank=r, world_size=3) for r in range(3)]
    assert [numbers(part) for part in ranks] == [[18, 19], [20, 21], [22, 0]]
    assert len(epoch_of(HDF5Samples(data_dir, 5))) == 4


@pytest.mark.slow
def test_subset_takes_its_ranges(data_dir):
    samples = HDF5Samples(data_dir, 1, data_subset="0.1-0.3,0.7-1.0")
    assert [numbers(b)[0] for b in epoch_of(samples)] == [*range(2, 6), *range(16, 23)]
    for wrong in ("0.5-0.1", "0-2", "a-b", "0.5", "0.0-0.5,0.4-1.0"):
        with pytest.raises(DataError, match="data_subset"):
            HDF5Samples(data_dir, 1, data_subset=wrong)


@pytest.mark.slow
def test_corpus_is_cut_into_samples_across_files(tmp_path):
    tokens = np.arange(100, dtype=np.int64)
    for name, part in (("a", tokens[:37]), ("b", tokens[37:41]), ("c", tokens[41:])):
        with h5py.File(tmp_path / f"{name}.h5", "w") as f:
            f["data"] = part
    samples = HDF5Samples(tmp_path, 9, max_sequence_length=11)
    assert len(samples) == 9
    batch = samples.batch(0)
    assert np.array_equal(batch["input_ids"].reshape(-1), tokens[:99])
    assert np.array_equal(batch["labels"].reshape(-1), tokens[1:])
    assert batch["attention_mask"].all()
    with pytest.raises(DataError, match="set max_sequence_length"):
        HDF5Samples(tmp_path, 9)


@pytest.mark.slow
def test_wrong_vocabulary_names_file_and_token(data_dir):
    samples = HDF5Samples(data_dir, 2)
    samples.check_vocabulary(23)
    with pytest.raises(DataError, match=r"output_chunk_000002\.h5: token id 20 is outside .* vocabulary of 20"):
        samples.check_vocabulary(20)


@pytest.mark.slow
@pytest.mark.parametrize("offender", [2**32 + 5, -(2**32) + 5, 2**63 - 1])
def test_an_id_too_wide_for_int32_is_refused_before_it_is_cast(tmp_path, offender):
    rows = np.stack(list(numbered_rows(4))).astype(np.int64)
    rows[2, 0, 1] = offender
    (tmp_path / "wide").mkdir()
    with h5py.File(tmp_path / "wide/a.h5", "w") as file:
        file["data"] = rows
    with pytest.raises(DataError, match=rf"a\.h5: holds {offender}"):
        HDF5Samples(tmp_path / "wide", 2).check_vocabulary(10_000)
    with h5py.File(tmp_path / "wide/a.h5", "r+") as file:
        del file["data"]
        file["data"] = rows.reshape(-1)  # a corpus
    with pytest.raises(DataError, match=rf"a\.h5: holds {offender}"):
        HDF5Samples(tmp_path / "wide", 2, max_sequence_length=4).check_vocabulary(10_000)
    with pytest.raises(DataError, match=f"holds {offender}"):
        write_hdf5(tmp_path / "written", iter(rows), metadata=DataParameters(vocab_size=10_000, eos_id=0, pad_id=0))
    assert not (tmp_path / "written").exists()


@pytest.mark.slow
def test_every_batch_is_checked_once_the_vocabulary_is_known(data_dir):
    """Data too large to be looked through beforehand is still never trained on with a wrong id."""
    samples = HDF5Samples(data_dir, 2, data_subset="0.5-1.0")
    samples.check_vocabulary(23)
    samples._vocab_size = 21
    assert numbers(samples.batch(4)) == [19, 20]
    with pytest.raises(DataError, match=r"output_chunk_000003\.h5: token id 21 "):
        samples.batch(5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_vsl": True}, "use_vsl needs 5; pack with --vsl"),
        ({"max_sequence_length": 4}, "leave max_sequence_length out"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"num_samples": 0}, "num_samples 0"),
        ({"data_dir": None}, "exactly one of"),
        ({"data_dir": None, "mixture": [{"weight": 1}]}, "each part needs"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(data_dir, arguments, message):
    with pytest.raises(DataError, match=message):
        HDF5Samples(**{"data_dir": data_dir, "batch_size": 2, **arguments})


def test_directories_that_do_not_fit_are_refused(tmp_path, data_dir):
    with pytest.raises(DataError, match="no such data directory"):
        HDF5Samples(tmp_path / "nowhere", 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \*\.h5 files"):
        HDF5Samples(tmp_path / "empty", 1)
    write_hdf5(tmp_path / "vsl", numbered_rows(3, features=5), metadata=METADATA)
    with pytest.raises(DataError, match="set use_vsl: True"):
        HDF5Samples(tmp_path / "vsl", 1)
    with pytest.raises(DataError, match="files of one data set must agree"):
        HDF5Samples([data_dir, tmp_path / "vsl"], 1)
    file = data_dir / "output_chunk_000001.h5"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match=r"output_chunk_000001\.h5: not a readable HDF5 file"):
        HDF5Samples(data_dir, 1)
    with h5py.File(tmp_path / "empty" / "x.h5", "w") as f:
        f["other"] = np.zeros(3)
    with pytest.raises(DataError, match='no dataset "data"'):
        HDF5Samples(tmp_path / "empty", 1)


@pytest.mark.slow
def test_failed_writing_leaves_nothing(tmp_path):
    def rows():
        yield from numbered_rows(5)
        raise DataError("broken off")

    with pytest.raises(DataError, match="broken off"):
        write_hdf5(tmp_path / "d", rows(), samples_per_file=2, metadata=METADATA)
    with pytest.raises(DataError, match="token id 5 is outside the vocabulary of 5"):
        write_hdf5(tmp_path / "d", numbered_rows(6), metadata=DataParameters(5, 0, 0))
    with pytest.raises(DataError, match="too little text"):
        write_hdf5(tmp_path / "d", [], metadata=METADATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_existing_data_is_never_overwritten(data_dir):
    before = sorted(data_dir.iterdir())
    with pytest.raises(DataError, match="not an empty folder"):
        write_hdf5(data_dir, numbered_rows(2), metadata=METADATA)
    assert sorted(data_dir.iterdir()) == before


@pytest.mark.slow
def test_mixture_repeats_the_small_source_and_keeps_each_in_order(tmp_path, data_dir):
    rows = numbered_rows(5)
    rows[:, 0, 0] += 1000
    write_hdf5(tmp_path / "small", rows, metadata=METADATA)
    mixture = [{"data_dir": str(data_dir), "weight": 1}, {"data_dir": str(tmp_path / "small"), "weight": 1}]
    samples = HDF5Samples(batch_size=1, mixture=mixture)
    read = [numbers(b)[0] for b in epoch_of(samples)]
    assert [n for n in read if n < 1000] == list(range(23))
    assert [n for n in read if n >= 1000] == [1000 + i % 5 for i in range(23)]
    assert sorted(read) != read
    with pytest.raises(DataError, match=r"small/output_chunk_000000\.h5: token id 1000 "):
        samples.check_vocabulary(1000)


def test_checkpoint_state_is_checked_and_gives_the_position(data_dir):
    samples = HDF5Samples(data_dir, 5, shuffle=True, shuffle_seed=4)
    state = samples.dataloader_state(35)
    assert HDF5Samples(str(data_dir), 7, shuffle=True, shuffle_seed=4).start_sample_from(state) == 35
    with pytest.raises(DataError, match="shuffle_seed \\(now 9, saved 4\\)"):
        HDF5Samples(data_dir, 5, shuffle=True, shuffle_seed=9).start_sample_from(state)
    with pytest.raises(DataError, match="not of version 1"):
        samples.start_sample_from({"samples_streamed": 3, "seed": 1})
