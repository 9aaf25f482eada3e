"""The Model Zoo's trainer learns the same as ours from a mixture of Arabic, English and code, packed as data runs pack.

Contract: with the real GptHDF5MapDataProcessor and trainer, the first losses of the tiny jais config on documents of
three sources at the card's ratio, cut out of one stream, agree with the reference trainer's within 1e-5.
"""

import shutil

import numpy as np
import pytest

from cerebras_jais.data.dataset import DataParameters
from cerebras_jais.data.documents import read_documents, sample_corpus_path
from cerebras_jais.data.mixture import Source, mix
from cerebras_jais.data.pipeline import batches, pack_store
from cerebras_jais.data.token_store import Store
from cerebras_jais.data.tokenizer import encode_documents, train_tokenizer, vocabulary_size
from cerebras_jais.encoding import Encoder, Tokens
from tests import tolerances
from tests.cerebras_jais.modelzoo.runs import ROOT, prepare, reference, require_modelzoo, zoo, zoo_scalars
from tests.xquad import xquad_files

pytestmark = [pytest.mark.modelzoo, pytest.mark.slow]

STEPS, LENGTH, EOS = 5, 128, 0
WEIGHTS = {"ar": 490, "en": 980, "code": 196}  # published: the card, jais-family-30b-16k, billions of tokens


def documents_of(kind, folder):
    """The documents of each source; a file of Python is one, read under a name that says text."""
    if kind == "bundled":
        names = {"ar": "arabic", "en": "english", "code": "code"}
        files = {source: sample_corpus_path() / f"{name}.jsonl" for source, name in names.items()}
    else:
        files = {"ar" if ".ar." in file.name else "en": file for file in xquad_files()} | {"code": folder / "code"}
        files["code"].mkdir()
        for file in (ROOT / "cerebras_jais" / "data").glob("*.py"):
            shutil.copy(file, files["code"] / f"{file.stem}.txt")
    return {source: list(read_documents(file)) for source, file in files.items()}


def stored(encoder, documents):
    """Documents as a store, each with its end of text."""
    parts = []
    for batch in (encode_documents(encoder, some, EOS) for some in batches(documents, lambda each: len(each.text))):
        ends = batch.ends + np.arange(1, len(batch.ends) + 1)
        parts.append(Tokens(np.insert(batch.ids, batch.ends, EOS), ends))
    return Store(parts)


@pytest.mark.parametrize("kind", ["bundled", pytest.param("xquad", marks=pytest.mark.xquad)])
def test_both_trainers_have_the_same_losses_on_a_mixture(tmp_path, kind):
    require_modelzoo()
    documents = documents_of(kind, tmp_path)
    tokenizer = train_tokenizer([document for part in documents.values() for document in part], 2048)
    encoder = Encoder(tokenizer)
    mixture = mix([Source(name, stored(encoder, part), WEIGHTS[name]) for name, part in documents.items()])
    metadata = DataParameters(
        vocab_size=vocabulary_size(tokenizer), eos_id=EOS, pad_id=EOS, output_dir="train", mixture=mixture.record()
    )
    (tmp_path / "data").mkdir()
    pack_store(
        mixture.store, mixture.order, LENGTH, tmp_path / "data/train", metadata, scratch=tmp_path / "data", vsl=False
    )
    path = prepare(tmp_path, "jais.yaml", steps=STEPS)
    assert not (tmp_path / "data/train/a.h5").exists(), "the data is ours"
    zoo(tmp_path, "fit", path.name, "-o", "zoo")
    ((phase, result, _),) = reference(tmp_path, path, "ours")
    scalars = zoo_scalars(tmp_path / "zoo" / phase.model_dir.relative_to("ours"))
    theirs = [scalars["loss"][step] for step in range(1, STEPS + 1)]
    print(f"{kind}: largest difference {np.abs(np.subtract(theirs, result.losses)).max():.1e} of {theirs}")
    np.testing.assert_allclose(theirs, result.losses, rtol=0, atol=tolerances.MODELZOO_FIRST_LOSSES)
