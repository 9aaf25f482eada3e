"""On trained embeddings the projection beats both means on shared tokens that it has not seen.

Contract: a Llama-style base trained on English and a Jais-style donor trained on Arabic and English, tokenizers of
different kinds; over three seeds the projection has a higher cosine and a nearer neighbour than the mean of the base's
pieces and the mean of all, for the embedding and for the head.
"""

import numpy as np
import pytest
import torch

from cerebras_jais.data.tokenizer import load_tokenizer
from cerebras_jais.encoding import encode_texts
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.initialize import initialize_weights
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.cerebras_jais.vocabulary.embeddings.examples import (
    arabic_tokens,
    run_transfer,
    sample,
    size_of,
    write_base_tokenizer,
    write_donor_tokenizer,
    write_extended,
)
from tests.checkpoint_convert.examples import state_of, write_checkpoint

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
STEPS, BATCH, LENGTH, RATE = 250, 16, 32, 3e-3


def write_trained(path, section, tokenizer, documents, seed):
    """A checkpoint trained on documents for STEPS steps of AdamW."""
    config = DecoderConfig.from_section(section)
    ids = [token for found in encode_texts(load_tokenizer(tokenizer), [d.text for d in documents]) for token in found]
    torch.manual_seed(seed)
    model = LanguageModel(config)
    initialize_weights(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.1)
    for _ in range(STEPS):
        starts = torch.randint(len(ids) - LENGTH, (BATCH,)).tolist()
        rows = torch.tensor([ids[start : start + LENGTH + 1] for start in starts])
        batch = {"input_ids": rows[:, :-1], "labels": rows[:, 1:], "attention_mask": torch.ones_like(rows[:, 1:])}
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
        schedule.step()
    return write_checkpoint(path, section, state_of(model))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Folders of the base's, the donor's and the extended tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizers")
    base, donor = write_base_tokenizer(folder / "base"), write_donor_tokenizer(folder / "donor")
    return base, donor, write_extended(folder / "extended", base, arabic_tokens(donor))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_projection_beats_both_means(tokenizers, tmp_path, seed):
    base, donor, extended = tokenizers
    sizes = {"num_heads": 4, "max_position_embeddings": LENGTH, "filter_size": 128}
    without_mup = dict.fromkeys(
        (
            "mup_base_hidden_size",
            "mup_base_filter_size",
            "output_logits_alpha",
            "embeddings_scale",
            "scale_qk_dot_by_d",
        )
    )
    llama = llama_section(hidden_size=64, vocab_size=size_of(base), **sizes)
    jais = jais_section(hidden_size=48, vocab_size=size_of(donor), **sizes, **without_mup)
    write_trained(tmp_path / "base.mdl", llama, base, sample("en"), seed)
    write_trained(tmp_path / "donor.mdl", jais, donor, sample("ar", "en"), 100 + seed)
    report = run_transfer(
        tmp_path / "base.mdl",
        tmp_path / "donor.mdl",
        extended,
        tmp_path / "extended.mdl",
        base_tokenizer=base,
        donor_tokenizer=donor,
        seed=seed,
        dry_run=True,
    )
    judged = {(row["matrix"], row["method"]): row for row in report["judged"]}
    for matrix in ("embedding", "head"):
        ours = judged[matrix, "projection"]
        assert np.isfinite(ours["cosine"])
        for method in ("pieces", "mean"):
            other = judged[matrix, method]
            assert ours["cosine"] > other["cosine"], (matrix, method)
            assert ours["median_rank"] < other["median_rank"], (matrix, method)
