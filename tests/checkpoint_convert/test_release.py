"""A release holds the tokenizer that belongs to the model.

Contract: its files are copied, its special tokens are the ids in config.json and generation_config.json, transformers
loads it from the release; a tokenizer with more ids than the model, or without what it declares, is refused.
"""

import json

import pytest

from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.convert import SpecialTokens
from checkpoint_convert.convert import convert_to_hf
from checkpoint_convert.release import read_tokenizer
from tests.checkpoint_convert.examples import jais_section, llama_section, random_model, state_of, write_checkpoint

TOKENS = ["<|endoftext|>", "<s>", "</s>", *"abcdefg"]

EOS = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False, "rstrip": False}


def write_tokenizer(directory, tokens=TOKENS, **special):
    directory.mkdir()
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {t: i for i, t in enumerate(tokens)}, "unk_token": tokens[0]},
    }
    (directory / "tokenizer.json").write_text(json.dumps(content))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "notes.txt").write_text("not part of a tokenizer")
    return directory


def jais(**changes):
    return DecoderConfig.from_section(jais_section(**changes))


def test_the_tokenizer_is_copied_and_loads_from_the_release(tmp_path):
    from transformers import AutoTokenizer

    section = llama_section()
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))
    tokenizer = write_tokenizer(tmp_path / "tokenizer", bos_token="<s>", eos_token=EOS)
    convert_to_hf(checkpoint, tmp_path / "release", tokenizer=tokenizer)
    for name in ("config.json", "generation_config.json"):
        keys = json.loads((tmp_path / "release" / name).read_text())
        assert (keys["bos_token_id"], keys["eos_token_id"], keys.get("pad_token_id")) == (1, 2, None)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "release")
    assert loaded.convert_tokens_to_ids(["a", "g"]) == [3, 9]
    assert (loaded.bos_token_id, loaded.eos_token_id) == (1, 2)
    assert not (tmp_path / "release" / "notes.txt").exists()
    card = (tmp_path / "release" / "README.md").read_text()
    assert "included" in card and "AutoTokenizer" in card and "trust_remote_code" not in card


def test_without_declared_tokens_the_published_ids_hold(tmp_path):
    assert read_tokenizer(None, jais()).tokens == SpecialTokens(0, 0, 0)
    assert read_tokenizer(write_tokenizer(tmp_path / "t"), jais()).tokens == SpecialTokens(0, 0, 0)
    llama = DecoderConfig.from_section(llama_section())
    assert read_tokenizer(None, llama).tokens == SpecialTokens(1, 2, None)


def test_added_tokens_count(tmp_path):
    directory = write_tokenizer(tmp_path / "t")
    content = json.loads((directory / "tokenizer.json").read_text())
    content["added_tokens"] = [{"id": 200, "content": "<more>"}]
    (directory / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="go up to 200 but the model's vocab_size is 97"):
        read_tokenizer(directory, jais())


def test_a_vocabulary_larger_than_the_models_is_refused_and_leaves_nothing(tmp_path):
    section = jais_section(vocab_size=9)
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="does not belong to this model"):
        convert_to_hf(checkpoint, tmp_path / "release", tokenizer=tokenizer)
    assert not (tmp_path / "release").exists()


def test_a_special_token_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match="'<eos>'"):
        read_tokenizer(write_tokenizer(tmp_path / "t", eos_token="<eos>"), jais())
    with pytest.raises(UserError, match="eos_token"):
        read_tokenizer(write_tokenizer(tmp_path / "u", eos_token=["<eos>"]), jais())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"model": {"vocab": 3}}',
        '{"model": {"vocab": {"a": "1"}}}',
        '{"model": {"vocab": {"a": -1}}}',
        '{"model": {"vocab": {"a": 1}}, "added_tokens": [{"content": [], "id": 2}]}',
        '{"model": {"vocab": {"a": 1}}, "added_tokens": 3}',
    ],
)
def test_a_damaged_tokenizer_is_refused(tmp_path, content):
    directory = write_tokenizer(tmp_path / "t")
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        read_tokenizer(directory, jais())


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer"):
        read_tokenizer(tmp_path, jais())
    with pytest.raises(UserError, match="not a directory"):
        read_tokenizer(tmp_path / "no", jais())


def test_the_card_says_what_the_files_say(tmp_path):
    section = jais_section()
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))
    convert_to_hf(checkpoint, tmp_path / "release")
    card = (tmp_path / "release" / "README.md").read_text()
    for fact in ("61,436", "float32", "2, 48, 128", "12, 12, 4", "tied to the embedding", "ALiBi", "| 20 |", "2.10.0"):
        assert fact in card
