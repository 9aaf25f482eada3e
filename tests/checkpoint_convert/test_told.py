"""What a conversion leaves out or cannot do is said with its name and its remedy, and `inspect` says what `to-hf` does.

Contract: `inspect` says of every model that `to-hf` refuses that it does not convert, with the same reason; adapters
are named as adapters; ids of special tokens and chat templates come along or are named; weights in pickle files are
compared wherever --allow-pickle is given; one number of tensors is said of a model on both sides.
"""

import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file

from cerebras_jais.errors import UserError
from cerebras_jais.model.load import load_model
from checkpoint_convert.cli import cli
from checkpoint_convert.convert import convert_to_cerebras, convert_to_hf
from checkpoint_convert.verify.inspect import inspect
from tests.checkpoint_convert.examples import (
    VARIANTS,
    jais_checkpoint,
    jais_section,
    llama_section,
    random_model,
    state_of,
    write_checkpoint,
)
from tests.checkpoint_convert.test_release import EOS, TOKENS, write_tokenizer

pytestmark = pytest.mark.slow

QUERY = "model.transformer_decoder.layers.{}.self_attn.proj_q_dense_layer"


def run(*words):
    result = CliRunner().invoke(cli, list(map(str, words)))
    assert isinstance(result.exception, (SystemExit, UserError, type(None))), result.exception
    return result


def keys_of(release):
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    found = [json.loads((release / file).read_text()) for file in ("config.json", "generation_config.json")]
    assert [found[0].get(name) for name in names] == [found[1].get(name) for name in names]
    return tuple(found[0].get(name) for name in names)


def released(directory, section=None, **tokens):
    """A release whose config.json has been given special tokens by hand."""
    section = section or llama_section()
    convert_to_hf(
        write_checkpoint(directory / "c.mdl", section, state_of(random_model(section))), directory / "release"
    )
    for name in ("config.json", "generation_config.json"):
        file = directory / "release" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | tokens))
    return directory / "release"


# ---- inspect and to-hf ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section",
    [
        llama_section(norm_type="layernorm"),
        llama_section(use_bias_in_output=True),
        llama_section(rotary_dim=2),
        llama_section(embeddings_scale=2.0),
        jais_section(norm_type="rmsnorm"),
        jais_section(attention_logits_alpha=2.0),
        jais_section(use_ffn_bias=False),
        jais_section(),
        llama_section(),
    ],
    ids=lambda section: f"{section['name']}",
)
def test_inspect_says_of_a_checkpoint_what_to_hf_does_with_it(tmp_path, section):
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))
    verdict = inspect(checkpoint)["converts"]
    said = run("to-hf", checkpoint, "--output", tmp_path / "release", "--dry-run").exception
    assert verdict == ("yes" if said is None else f"no: {said}")


# ---- adapters -------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(tmp_path):
    """A checkpoint as the Model Zoo's LoRA leaves it: `lora_A` [r, in] and `lora_B` [out, r] beside a weight."""
    section = jais_section()
    state = state_of(random_model(section))
    for layer in range(2):
        state[f"{QUERY.format(layer)}.lora_A"] = np.zeros((4, 48), np.float32)
        state[f"{QUERY.format(layer)}.lora_B"] = np.zeros((48, 4), np.float32)
    return write_checkpoint(tmp_path / "lora.mdl", section, state)


@pytest.mark.parametrize("verb", [lambda path: convert_to_hf(path, path.parent / "release"), load_model])
def test_a_checkpoint_with_adapters_is_refused_by_their_names_and_the_remedy(adapted, verb):
    with pytest.raises(UserError, match=r"lora\.mdl: .*proj_q_dense_layer\.lora_A.*fold the LoRA adapters") as refused:
        verb(adapted)
    assert "\n" not in str(refused.value)
    assert "fold the LoRA adapters" in inspect(adapted)["converts"]


def test_an_adapter_without_its_model_is_said_to_be_one(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    for words in (
        ("to-cerebras", tmp_path / "adapter", "--output", tmp_path / "c.mdl"),
        ("inspect", tmp_path / "adapter"),
    ):
        assert "is an adapter without its model; fold the LoRA adapters" in str(run(*words).exception)


# ---- pickled weights ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["jais-12-heads", "llama-20-heads-tied"])
def test_logits_of_pickled_weights_are_compared_where_that_is_allowed(tmp_path, variant):
    release = released(tmp_path, VARIANTS[variant])
    (shard,) = release.glob("*.safetensors")
    torch.save(
        {name: torch.from_numpy(array) for name, array in load_file(shard).items()}, release / "pytorch_model.bin"
    )
    for name in (shard.name, "model.safetensors.index.json", "manifest.json"):
        (release / name).unlink()
    refused = run("verify", tmp_path / "c.mdl", release, "--logits")
    assert "--allow-pickle" in str(refused.exception)
    compared = run("verify", tmp_path / "c.mdl", release, "--logits", "--allow-pickle")
    assert compared.exit_code == 0, compared.output
    assert "logits: largest difference" in compared.output


# ---- special tokens -------------------------------------------------------------------------------------------------


def test_special_tokens_of_a_release_come_back(tmp_path):
    release = released(tmp_path, bos_token_id=5, eos_token_id=[6, 7], pad_token_id=3)
    report = convert_to_cerebras(release, tmp_path / "back.mdl")
    (note,) = [note for note in report.notes if "eos_token_id" in note]
    assert "bos_token_id 5, eos_token_id [6, 7], pad_token_id 3: stored in the checkpoint" in note
    assert note in (tmp_path / "back.yaml").read_text()
    convert_to_hf(tmp_path / "back.mdl", tmp_path / "again")
    assert keys_of(tmp_path / "again") == (5, [6, 7], 3)


def test_special_tokens_are_noted_where_they_are_assumed_and_only_there(tmp_path):
    checkpoint = jais_checkpoint(tmp_path)
    (note,) = [note for note in convert_to_hf(checkpoint, tmp_path / "bare").notes if "token_id" in note]
    assert "those of the published models: bos_token_id 0, eos_token_id 0, pad_token_id 0" in note
    tokenizer = write_tokenizer(tmp_path / "t", TOKENS, bos_token="<s>", eos_token=EOS, pad_token="a")
    report = convert_to_hf(checkpoint, tmp_path / "release", tokenizer=tokenizer)
    assert not [note for note in report.notes if "token_id" in note]
    back = convert_to_cerebras(tmp_path / "bare", tmp_path / "back.mdl")
    assert not [note for note in back.notes if "token_id" in note]


def test_a_tokenizer_counts_before_what_the_checkpoint_keeps(tmp_path):
    release = released(tmp_path, bos_token_id=5, eos_token_id=[2, 7], pad_token_id=3)
    convert_to_cerebras(release, tmp_path / "back.mdl")
    tokenizer = write_tokenizer(tmp_path / "t", TOKENS, bos_token="<s>", eos_token=EOS)
    report = convert_to_hf(tmp_path / "back.mdl", tmp_path / "again", tokenizer=tokenizer)
    assert keys_of(tmp_path / "again") == (1, [2, 7], 3)
    assert "bos_token_id is 1, as the tokenizer declares; the checkpoint has 5" in report.notes


@pytest.mark.parametrize("wrong", ["5", [5, None], True, 5.5])
def test_special_tokens_that_are_no_ids_are_refused_with_the_file(tmp_path, wrong):
    release = released(tmp_path, eos_token_id=wrong)
    with pytest.raises(UserError, match=r"release/config\.json: eos_token_id: must be a token's id"):
        convert_to_cerebras(release, tmp_path / "back.mdl")


# ---- tokenizers -----------------------------------------------------------------------------------------------------


def test_named_chat_templates_are_those_that_transformers_loads_from_the_release(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = write_tokenizer(tmp_path / "t", TOKENS, eos_token=EOS)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    loaded.chat_template = {"default": "{{ 'a' }}", "tool_use": "{{ 'b' }}", "rag": "{{ 'c' }}"}
    loaded.save_pretrained(tmp_path / "saved")
    convert_to_hf(jais_checkpoint(tmp_path), tmp_path / "release", tokenizer=tmp_path / "saved")
    of_release = AutoTokenizer.from_pretrained(tmp_path / "release", trust_remote_code=False)
    assert of_release.chat_template == loaded.chat_template
    listed = json.loads((tmp_path / "release" / "manifest.json").read_text())["files"]
    assert "additional_chat_templates/tool_use.jinja" in listed
    assert run("verify", tmp_path / "release").exit_code == 0


def test_what_is_no_file_of_a_tokenizer_is_named(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "t", TOKENS, eos_token=EOS)
    (tokenizer / "chat_template.json").write_text('{"chat_template": "{{ 1 }}"}')
    (tokenizer / "prompts").mkdir()
    (tokenizer / "model.safetensors").write_bytes(b"weights of a release")
    report = convert_to_hf(jais_checkpoint(tmp_path), tmp_path / "release", tokenizer=tokenizer)
    (note,) = [note for note in report.notes if note.startswith("left out, because they are not tokenizer files")]
    assert "notes.txt, prompts/ (in " in note
    assert (tmp_path / "release" / "chat_template.json").is_file()
    again = convert_to_hf(tmp_path / "c.mdl", tmp_path / "again", tokenizer=tmp_path / "release")
    assert not [note for note in again.notes if note.startswith("left out, because")]


# ---- numbers of tensors ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["jais-12-heads", "jais-20-heads-untied", "llama-20-heads-tied", "llama-one-group"])
def test_one_number_of_tensors_is_said_of_a_model(tmp_path, variant):
    section = VARIANTS[variant]
    model = random_model(section)
    checkpoint, release = write_checkpoint(tmp_path / "c.mdl", section, state_of(model)), tmp_path / "release"
    said = [
        run("to-hf", checkpoint, "--output", release).output,
        run("to-cerebras", release, "--output", tmp_path / "back.mdl").output,
        run("verify", checkpoint, release).output,
        run("verify", release).output,
        run("verify", tmp_path / "back.mdl").output,
    ]
    counts = {int(number) for text in said for number in re.findall(r"(\d+) (?:tensors|of|digests)", text)}
    assert counts == {len({tensor.data_ptr() for tensor in model.state_dict().values()})}
    assert {inspect(path)["tensors"] for path in (checkpoint, release)} == counts
    (of_release,) = release.glob("*.safetensors")
    assert f"under {len(load_file(of_release))} names" in said[0]
    assert f"under {len(model.state_dict())} names" in said[1]
