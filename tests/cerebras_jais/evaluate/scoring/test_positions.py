"""Loss by position is the decoder's loss at each place of a row, beyond the context with ALiBi.

Contract: each range has the mean of -ln p that the decoder gives for its positions; rows are documents one behind the
other with an end-of-text token before each; rotary models read their context; the command prints the table and draws.
"""

import json
from copy import deepcopy

import pytest
import torch
from click.testing import CliRunner

from cerebras_jais.chat.forward import Forward
from cerebras_jais.cli import cli
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.scoring.positions import longest_row, loss_by_position, plot, rows_of
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.chat_tokenizers import VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint

CONTEXT = 16


@pytest.mark.parametrize(("section", "times"), [(jais_section, 4), (llama_section, 1)])
def test_each_range_has_the_decoders_mean_loss_of_its_positions(section, times):
    model = random_model(section(max_position_embeddings=CONTEXT))
    length = longest_row(forward := Forward(deepcopy(model)))
    assert length == times * CONTEXT
    rows = torch.randint(97, (3, length + 1), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        log_p = model.logits(rows[:, :-1]).double().log_softmax(-1)
    losses = -log_p.gather(2, rows[:, 1:, None])[..., 0]
    found = loss_by_position(forward, rows.tolist())
    assert [(one.first, one.last, one.tokens) for one in found] == [
        (start + 1, start + 4, 12) for start in range(0, length, 4)
    ]
    for one in found:
        mine = losses[:, one.first - 1 : one.last]
        assert one.loss == pytest.approx(mine.mean().item(), abs=1e-5)
        assert one.error == pytest.approx(mine.std(correction=0).item() / 12**0.5, abs=1e-5)


def test_rows_are_documents_one_behind_the_other():
    documents = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    assert rows_of(iter(documents), 0, 3, 9) == [[0, 1, 2, 3], [0, 4, 5, 0], [6, 7, 8, 9]]
    assert rows_of(iter(documents), 0, 3, 2) == [[0, 1, 2, 3], [0, 4, 5, 0]]
    with pytest.raises(UserError, match="give more text"):
        rows_of(iter(documents), 0, 99, 1)


def test_the_command_prints_the_table_and_draws(tmp_path):
    section = jais_section(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT)
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))
    tokenizer = write_tokenizer("jais", tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text("The sun rises in the east. " * 40)
    words = ["score", str(checkpoint), "--tokenizer", str(tokenizer), "--text", str(tmp_path / "text.txt")]
    words += ["--rows", "2", "--by-position", str(tmp_path / "plot.png")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    table = done.output.splitlines()
    assert len(table) == 1 + 16 + 1
    assert table[-2].split() == ["61", "to", "64", "4.00x", "8", *table[-2].split()[-2:]]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    done = CliRunner().invoke(cli, [*words, "--json"])
    assert [one["tokens"] for one in json.loads(done.output)] == [8] * 16
    done = CliRunner().invoke(cli, [*words, "--weights", "bfloat16"])
    assert isinstance(done.exception, UserError)
    assert "leave --weights out" in str(done.exception)


@pytest.mark.parametrize(("plot", "said"), [("p.txt", "choose one"), ("none/p.png", "create it first")])
def test_a_plot_that_cannot_be_written_is_refused_before_the_model_is_read(tmp_path, plot, said):
    (tmp_path / "text.txt").write_text("x")
    words = ["score", str(tmp_path / "no.mdl"), "--tokenizer", str(tmp_path), "--text", str(tmp_path / "text.txt")]
    done = CliRunner().invoke(cli, [*words, "--by-position", str(tmp_path / plot)])
    assert isinstance(done.exception, UserError) and said in str(done.exception)


def test_a_plot_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"\.png, \.svg or \.pdf"):
        plot([], 1, tmp_path / "plot.txt")
