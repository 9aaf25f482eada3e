"""The snippet of a model card runs as it stands, with nobody there to answer a question.

Contract: in a process of its own, without a terminal and without the network, the Python block of README.md in a
release loads model and tokenizer and prints a text; for both families, with and without a tokenizer.
"""

import os
import re
import subprocess
import sys

import pytest

from cerebras_jais.data.documents import read_documents, sample_corpus_path
from cerebras_jais.data.tokenizer import save_tokenizer, train_tokenizer
from checkpoint_convert.convert import convert_to_hf
from tests.checkpoint_convert.examples import VARIANTS, random_model, state_of, write_checkpoint
from tests.process import PATIENCE


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", [True, False])
@pytest.mark.parametrize("variant", ["jais-12-heads", "llama-20-heads-tied"])
def test_the_snippet_of_a_card_runs_unattended(tmp_path, variant, tokenizer):
    pytest.importorskip("transformers")
    section = {**VARIANTS[variant], "vocab_size": 300, "max_position_embeddings": 64}
    write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))
    if tokenizer:
        trained = train_tokenizer(list(read_documents(sample_corpus_path())), 300)
        save_tokenizer(trained, tmp_path / "tokenizer", 64)
    convert_to_hf(tmp_path / "c.mdl", tmp_path / "release", tokenizer=tmp_path / "tokenizer" if tokenizer else None)
    card = (tmp_path / "release" / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=tmp_path / "release",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 0, done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    if tokenizer:
        assert "اللغة" in done.stdout
