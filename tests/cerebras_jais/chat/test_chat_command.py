"""`chat` as a script and `generate --chat`: answers of the model, history, what a line can ask, one line of refusal."""

import json

import pytest
from click.testing import CliRunner

from cerebras_jais.chat.engine import open_engine
from cerebras_jais.cli import cli
from cerebras_jais.errors import UserError
from checkpoint_convert.convert import convert_to_hf
from tests.cerebras_jais.model.examples import jais_section
from tests.chat_tokenizers import VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint

TUNED = {"train_dataloader": {"data_dir": "data/chat/train", "use_vsl": True}, "ckpt_path": "base.mdl"}
QUESTION = "ما هي عاصمة الإمارات؟"
SHORT = ["--temperature", "0", "--max-new-tokens", "6"]


def release(folder, fit):
    section = jais_section(vocab_size=VOCABULARY, max_position_embeddings=64)
    checkpoint = write_checkpoint(folder / "c.mdl", section, state_of(random_model(section)), fit=fit)
    convert_to_hf(checkpoint, folder / "release", tokenizer=write_tokenizer("jais", folder / "tokenizer"))
    return folder / "release"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return release(tmp_path_factory.mktemp("tuned"), TUNED)


def run(*words, lines=()):
    text = "".join(f"{line}\n" for line in lines)
    return CliRunner().invoke(cli, list(map(str, words)), input=text, catch_exceptions=False)


def test_a_conversation_keeps_its_history_and_saves_it(tuned, tmp_path):
    lines = [QUESTION, "And of Egypt?", f"/save {tmp_path / 'c.json'}", "/reset", QUESTION, "/quit", "never read"]
    done = run("chat", tuned, *SHORT, lines=lines)
    saved = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in saved] == ["user", "assistant"] * 2
    assert "ALiBi" in done.output  # the prompt is longer than 64 tokens
    for message in saved[1::2]:
        assert message["content"] in done.output
    assert (
        done.output.splitlines().count(saved[1]["content"]) == 2
    )  # after /reset the same question has the same answer
    answer = run("generate", tuned, "--chat", "--prompt", QUESTION, *SHORT)
    assert saved[1]["content"] in answer.output


def test_a_system_message_and_a_language_change_the_prompt(tuned):
    engine = open_engine(tuned)
    ask = [{"role": "user", "content": QUESTION}]
    prompts = [engine.chat_ids(ask), engine.chat_ids(ask, "en")]
    prompts.append(engine.chat_ids([{"role": "system", "content": "Be brief."}, *ask]))
    assert len(set(map(tuple, prompts))) == 3


def test_the_folder_that_one_is_in_has_its_name(tuned, monkeypatch):
    monkeypatch.chdir(tuned)
    assert open_engine(".").name == "release"


def test_a_base_model_is_not_chatted_with(tmp_path):
    base = release(tmp_path, None)
    for words in (["chat", base], ["generate", base, "--chat", "--prompt", "x"]):
        with pytest.raises(UserError, match="is a base model"):
            run(*words, lines=["x"])


def test_what_a_line_cannot_ask_is_said(tuned):
    with pytest.raises(UserError, match="/nothing: no such request"):
        run("chat", tuned, lines=["/nothing"])


@pytest.mark.parametrize(
    "words", [["chat"], ["generate", "--prompt", "x"], ["generate", "--prompt", "x", "--tokenizer"]]
)
def test_a_model_that_is_not_there_is_said_to_be_missing(words, tmp_path):
    rest = [tmp_path] if words[-1] == "--tokenizer" else []
    with pytest.raises(UserError, match=r"none\.mdl: no such file or folder"):
        run(*words, *rest, tmp_path / "none.mdl")
