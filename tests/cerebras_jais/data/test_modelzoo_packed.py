"""Contract: the Model Zoo's two readers of HDF5 data, by sample and iterable, read what is packed of a mixture as it
was packed, in rows of all sources and in a folder for each."""

import itertools

import numpy as np
import pytest

from cerebras_jais.data.dataset import DataParameters, HDF5Samples
from cerebras_jais.data.mixture import Source, folder_weights, mix
from cerebras_jais.data.pipeline import pack_store
from tests.cerebras_jais.data.stores import store_of

pytestmark = pytest.mark.modelzoo

EOS, LENGTH = 0, 48


@pytest.fixture(scope="module")
def sources():
    """Documents of random tokens, those of the second source above those of the first."""
    rng = np.random.default_rng(0)

    def documents(count, low):
        lengths = rng.integers(1, 100, size=count).tolist()
        return store_of([rng.integers(low, low + 400, size=length).tolist() for length in lengths], EOS)

    return [Source("en", documents(60, 1), 980), Source("ar", documents(40, 401), 490)]


@pytest.fixture(scope="module")
def packed(sources, tmp_path_factory):
    """Folders by name, `rows` and one for each source, packed in both ways, with what went into each."""
    root = tmp_path_factory.mktemp("packed")
    reports = {}
    for vsl in (False, True):
        for name, members in (("rows", sources), *((source.name, [source]) for source in sources)):
            mixture = mix(members)
            folder = root / str(vsl) / name
            folder.parent.mkdir(exist_ok=True)
            metadata = DataParameters(
                vocab_size=900, eos_id=EOS, pad_id=EOS, output_dir=name, source="", mixture=mixture.record()
            )
            reports[folder] = pack_store(
                mixture.store,
                mixture.order,
                LENGTH,
                folder,
                metadata,
                scratch=folder.parent,
                vsl=vsl,
                samples_per_file=16,
            )
    return root, reports


def rows_of(batches):
    """The rows of batches of the Model Zoo, as sorted tuples."""
    return sorted(
        tuple(np.concatenate([feature.numpy()[row] for _, feature in sorted(batch.items())]).tolist())
        for batch in batches
        for row in range(len(batch["input_ids"]))
    )


@pytest.mark.parametrize("vsl", [False, True])
def test_the_iterable_reader_reads_the_rows_that_the_other_one_reads(packed, vsl):
    pytest.importorskip("cerebras.modelzoo")
    from cerebras.modelzoo.data.nlp.gpt.GptHDF5DataProcessor import GptHDF5DataProcessor
    from cerebras.modelzoo.data.nlp.gpt.GptHDF5MapDataProcessor import GptHDF5MapDataProcessor

    folder = packed[0] / str(vsl) / "rows"
    config = {"data_dir": str(folder), "batch_size": 1, "shuffle": False, "use_vsl": vsl}
    by_sample = GptHDF5MapDataProcessor({"data_processor": "GptHDF5MapDataProcessor", **config})
    iterable = GptHDF5DataProcessor({"data_processor": "GptHDF5DataProcessor", **config})
    ours = HDF5Samples(**config)
    wanted = sorted(
        tuple(np.concatenate([array[0] for _, array in sorted(batch.items())]).tolist())
        for batch in itertools.islice(ours.batches(), len(ours))
    )
    assert len(wanted) == packed[1][folder].rows
    assert rows_of(by_sample.create_dataloader()) == wanted
    assert rows_of(iterable.create_dataloader()) == wanted


@pytest.mark.parametrize("vsl", [False, True])
def test_folders_of_the_sources_are_mixed_by_the_model_zoo_at_their_shares_of_tokens(packed, sources, vsl):
    pytest.importorskip("cerebras.modelzoo")
    from cerebras.modelzoo.data.nlp.gpt.GptHDF5MapDataProcessor import GptHDF5MapDataProcessor

    root, reports = packed
    found = {source.name: reports[root / str(vsl) / source.name] for source in sources}
    parts = folder_weights(
        {str(root / str(vsl) / name): (report.rows, report.filled_positions) for name, report in found.items()},
        {str(root / str(vsl) / source.name): source.weight for source in sources},
    )
    config = {"mixture": parts, "batch_size": 1, "use_vsl": vsl, "shuffle": False}
    loader = GptHDF5MapDataProcessor({"data_processor": "GptHDF5MapDataProcessor", **config}).create_dataloader()
    batches = list(loader)
    for their, our in zip(batches, HDF5Samples(**config).batches(), strict=False):
        assert all(np.array_equal(our[name], their[name].numpy()) for name in our)
    labels = np.concatenate([batch["labels"].numpy()[batch["attention_mask"].numpy() == 1] for batch in batches])
    arabic = (labels > 400).sum() / (labels > 0).sum()
    assert arabic == pytest.approx(490 / (980 + 490), abs=0.01)
