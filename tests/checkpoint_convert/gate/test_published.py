"""Layouts as the hub has them: what loads, what is known to break, and the printed commands make a copy that passes.

Contract: every variant of the keys that published config.json files have is read; the commands are printed only for a
layout that no conversion of this package wrote; run as printed, they give a release that passes the check.
"""

import json
import shlex

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from checkpoint_convert.cli import cli
from checkpoint_convert.configs.convert import public_keys
from checkpoint_convert.mapping.operations import forward
from checkpoint_convert.mapping.plan import make_plan
from checkpoint_convert.open_model import opening
from tests.chat_tokenizers import VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import jais_section, llama_section, random_model, state_of, write_checkpoint
from tests.checkpoint_convert.gate.test_damaged import checked, failures

pytest.importorskip("transformers")

_FAMILY = {"rotary_dim": None, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "torch_dtype": "float32"}
_HUB_CODE = {"AutoConfig": "configuration_jais.JAISConfig", "AutoModelForCausalLM": "modeling_jais.JAISLMHeadModel"}
_V3_CODE = {key: f"inceptionai/jais-30b-v3--{name}" for key, name in _HUB_CODE.items()}
# A stand-in for the published code, with imports that its first version has and transformers 5 does not.
_CODE = "from transformers.pytorch_utils import find_pruneable_heads_and_indices_of_old\npast_key_values[0][0]\n"
_HUB_TEMPLATE = "{{ '### Instruction: ' + messages[0]['content'] }}"


def family(keys):
    """config.json of jais-family-590m and others: today's keys, no tie_word_embeddings."""
    return {k: v for k, v in keys.items() if k != "tie_word_embeddings"} | _FAMILY | {"auto_map": _HUB_CODE}


def first_code(keys):
    """config.json of core42/jais-13b: the older names of muP's keys, the two factors on the logits as one."""
    product = keys.pop("mup_output_alpha") * keys.pop("mup_width_scale")
    return (
        keys
        | _FAMILY
        | {
            "embeddings_scale": keys.pop("mup_embeddings_scale"),
            "width_scale": product,
            "scale_qk_dot_by_d": keys.pop("mup_scale_qk_dot_by_d"),
            "auto_map": _HUB_CODE,
        }
    )


def v3(keys):
    """config.json of core42/jais-30b-v3: today's keys, an explicit tie, code in another repository."""
    return keys | _FAMILY | {"tie_word_embeddings": True, "auto_map": _V3_CODE}


def adapted(keys):
    """config.json of jais-adapted: transformers 4's Llama, without rope_parameters and a pad token."""
    return {k: v for k, v in keys.items() if k not in ("rope_parameters", "head_dim")} | {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


VARIANTS = {
    "jais-family": (jais_section, family, False),
    "jais-family-chat": (jais_section, family, True),
    "jais-13b": (jais_section, first_code, False),
    "jais-30b-v3": (jais_section, v3, False),
    "jais-adapted": (llama_section, adapted, False),
    "jais-adapted-chat": (llama_section, adapted, True),
}


def published(directory, name):
    """A small directory as the hub has the model: config.json, tokenizer, code where it has some, weights."""
    make, change, chat = VARIANTS[name]
    kind = "jais" if make is jais_section else "llama"
    sizes = {
        "hidden_size": 384,
        "num_heads": 12,
        "mup_base_hidden_size": 256,
        "mup_base_filter_size": 85.33333333333333,
    }
    sizes = sizes if kind == "jais" else {}
    section = make(vocab_size=VOCABULARY, max_position_embeddings=64, **sizes)
    checkpoint = write_checkpoint(directory / "source.mdl", section, state_of(random_model(section)))
    release = write_tokenizer(kind, directory / name)
    with opening(checkpoint) as model:
        plan = make_plan(model.config, model.side, model.tensors)
        keys = change(dict(public_keys(model.config)))
        tensors = {}
        for step in plan.steps:
            arrays = forward(step.operation, [source.read() for source in step.inputs])
            tensors |= {n: np.ascontiguousarray(a) for n, a in zip(step.outputs, arrays, strict=True)}
    save_file(tensors, release / "model.safetensors", {"format": "pt"})
    (release / "config.json").write_text(json.dumps(keys))
    if kind == "jais" and change is not v3:
        (release / "modeling_jais.py").write_text(_CODE)
        (release / "configuration_jais.py").write_text("class JAISConfig: ...\n")
    tokenizer = json.loads((release / "tokenizer_config.json").read_text())
    tokenizer |= {"clean_up_tokenization_spaces": True, **({"chat_template": _HUB_TEMPLATE} if chat else {})}
    (release / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return release


# Those that are not marked slow have the older keys, and the other family with a template.
@pytest.mark.parametrize(
    "name",
    [n if n in ("jais-13b", "jais-adapted-chat") else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS],
)
def test_a_published_layout_is_described_and_its_repaired_copy_passes(tmp_path, monkeypatch, name):
    release = published(tmp_path, name)
    found = checked(release)
    failed = failures(found)
    is_jais = "adapted" not in name
    assert found["published_layout"]
    assert failed.keys() == ({"code", "card"} if is_jais else {"card"})
    known = " ".join(found["known"])
    assert ("vLLM" in known) == is_jais
    assert ("embeddings_scale (mup_embeddings_scale)" in known) == (name == "jais-13b")
    assert ("tie_word_embeddings" in known) == name.startswith("jais-family")
    assert ("find_pruneable_heads_and_indices_of_old" in known) == (is_jais and name != "jais-30b-v3")
    assert ("another repository" in known) == (name == "jais-30b-v3")
    assert ("pad" in known) == (not is_jais)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "card.yaml").write_text("languages: [ar, en]\nlicence: apache-2.0\n")
    for command in found["repair"]:
        program, *words = shlex.split(command)
        assert program == "checkpoint-convert"
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.output
    repaired = checked(tmp_path / f"{name}-repaired")
    assert failures(repaired) == {} and not repaired["known"] and not repaired["repair"]
    assert (tmp_path / f"{name}-repaired" / "chat_template.jinja").exists() == name.endswith("chat")
