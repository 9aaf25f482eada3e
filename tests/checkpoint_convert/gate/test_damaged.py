"""The gate passes whole releases and names what is wrong with a damaged one.

Contract: releases of both families, base and chat, pass; each damage of the table fails, at the check and with the
words that the table gives. The files of a signed damage are listed in a new manifest, so that the content is judged.
"""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from checkpoint_convert.card import Card
from checkpoint_convert.cli import cli
from checkpoint_convert.convert import convert_to_hf
from checkpoint_convert.verify.manifest import list_files
from tests.chat_tokenizers import VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import jais_section, llama_section, random_model, state_of, write_checkpoint

pytest.importorskip("transformers")

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
CARD = Card(languages=("ar", "en"), licence="apache-2.0")


def release_of(directory, family, chat, **sizes):
    section = {"jais": jais_section, "llama": llama_section}[family](
        vocab_size=VOCABULARY, max_position_embeddings=64, **sizes
    )
    checkpoint = write_checkpoint(directory / "c.mdl", section, state_of(random_model(section)))
    tokenizer = write_tokenizer(family, directory / "tokenizer")
    convert_to_hf(checkpoint, directory / "release", tokenizer=tokenizer, chat=chat, card=CARD, max_shard_size=300_000)
    return directory / "release"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A chat release of a small Jais model in two shards."""
    return release_of(tmp_path_factory.mktemp("whole"), "jais", True)


def checked(release, *words):
    done = CliRunner().invoke(cli, ["release-check", str(release), "--json", *words])
    assert done.exit_code in (0, 1), done.output
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["passed"] == (done.exit_code == 0)
    return found


def failures(found):
    return {check["name"]: " ".join(check["texts"]) for check in found["checks"] if check["status"] == "failed"}


@pytest.mark.parametrize("family", ["jais", "llama"])
@pytest.mark.parametrize("chat", [False, True], ids=["base", "chat"])
def test_a_release_of_either_family_passes(tmp_path, family, chat):
    found = checked(release_of(tmp_path, family, chat))
    assert failures(found) == {}
    statuses = {check["name"]: check["status"] for check in found["checks"]}
    assert {name for name, status in statuses.items() if status == "skipped"} == (set() if chat else {"template"})


# ---- damages -------------------------------------------------------------------------------------------------------


def edit(name, old, new):
    """Replace a text in a file."""

    def damage(release):
        text = (release / name).read_text(encoding="utf-8")
        assert old in text
        (release / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return damage


def keys(name, **changes):
    """Change keys of a JSON file; None removes one."""

    def damage(release):
        content = json.loads((release / name).read_text(encoding="utf-8")) | changes
        content = {key: value for key, value in content.items() if value is not None or key not in changes}
        (release / name).write_text(json.dumps(content), encoding="utf-8")

    return damage


def without(name):
    return lambda release: (release / name).unlink()


def bytes_of(name, change):
    return lambda release: (release / name).write_bytes(change((release / name).read_bytes()))


def tensors(change):
    """Change the tensors of both shards: `change` gets one mapping of all."""

    def damage(release):
        shards = {shard: load_file(release / shard) for shard in SHARDS}
        whole = {name: array for found in shards.values() for name, array in found.items()}
        changed = change(whole)
        for shard, found in shards.items():
            save_file(
                {name: np.ascontiguousarray(changed[name]) for name in found if name in changed}
                | ({name: changed[name] for name in changed.keys() - whole.keys()} if shard == SHARDS[0] else {}),
                release / shard,
                {"format": "pt"},
            )

    return damage


def _with(name, change):
    return tensors(lambda found: found | {name: change(found[name].copy())})


def _nan(array):
    array.reshape(-1)[3] = np.nan
    return array


def _swapped(found):
    one, other = "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc2.weight"
    return found | {one: found[other], other: found[one]}


def _shifted(release):
    """Every token one id further."""
    path = release / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["vocab"] = {token: number + 1 for token, number in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] += 1
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _other_tokenizer(release):
    folder = write_tokenizer("llama", release.parent / "other")
    for file in folder.iterdir():
        shutil.copy(file, release)
    (release / "special_tokens_map.json").unlink()


def _old_code(release):
    """The release with a file of another version, recorded as that version."""
    path = release / "modeling_jais.py"
    path.write_text(path.read_text(encoding="utf-8").replace("use_cache", "past"), encoding="utf-8")


def _unknown_shard(release):
    path = release / "model.safetensors.index.json"
    path.write_text(path.read_text().replace(SHARDS[1], "model-00003-of-00003.safetensors"))


def _sign(release):
    manifest = json.loads((release / "manifest.json").read_text())
    (release / "manifest.json").write_text(json.dumps(manifest | list_files(release, SHARDS)))


GEN, TOK = "generation_config.json", "tokenizer_config.json"
SIGNED, AS_IS = True, False
DAMAGES = {
    "a changed line of code": (edit("modeling_jais.py", "import", "import  "), SIGNED, "code", "modeling_jais.py"),
    "other code": (_old_code, AS_IS, "code", "modeling_jais.py"),
    "missing code": (without("alibi_jais.py"), SIGNED, "code", "alibi_jais.py"),
    "code beside": (lambda r: (r / "more.py").write_text("print()"), SIGNED, "code", "more.py"),
    "code elsewhere": (keys("config.json", auto_map={"AutoConfig": "a/b--c.D"}), SIGNED, "code", "AutoConfig"),
    "a shifted vocabulary": (_shifted, SIGNED, "tokenizer", "eos_token"),
    "a tokenizer of another model": (_other_tokenizer, SIGNED, "tokenizer", "eos_token"),
    "a changed byte of the tokenizer": (edit("tokenizer.json", "{", "{ "), AS_IS, "manifest", "tokenizer.json"),
    "no tokenizer": (without("tokenizer.json"), SIGNED, "tokenizer", "tokenizer"),
    "an unknown eos token": (keys(TOK, eos_token="<end>"), SIGNED, "tokenizer", "'<end>'"),
    "no template": (without("chat_template.jinja"), SIGNED, "template", "chat_template.jinja"),
    "a changed byte of the template": (
        edit("chat_template.jinja", "Jais", "Jaiz"),
        SIGNED,
        "template",
        "byte for byte",
    ),
    "a second template": (keys(TOK, chat_template="{{ messages }}"), SIGNED, "template", TOK),
    "a wrong muP scale": (keys("config.json", mup_embeddings_scale=14.6), SIGNED, "config", "embeddings_scale"),
    "a wrong muP alpha": (keys("config.json", mup_output_alpha=2.22), SIGNED, "config", "output_logits_alpha"),
    "a wrong muP width": (keys("config.json", mup_width_scale=0.5), SIGNED, "config", "mup_base_hidden_size"),
    "q.k over sqrt(d)": (keys("config.json", mup_scale_qk_dot_by_d=False), SIGNED, "config", "scale_qk_dot_by_d"),
    "a wrong n_positions": (keys("config.json", n_positions=4096), SIGNED, "config", "max_position_embeddings"),
    "another class": (keys("config.json", architectures=["GPT2LMHeadModel"]), SIGNED, "config", "architectures"),
    "no torch_dtype": (keys("config.json", torch_dtype=None), SIGNED, "config", "torch_dtype"),
    "a wrong n_layer": (keys("config.json", n_layer=3), SIGNED, "config", "num_hidden_layers"),
    "a wrong vocab_size": (keys("config.json", vocab_size=701), SIGNED, "config", "vocab_size"),
    "a wrong tie flag": (keys("config.json", tie_word_embeddings=False), SIGNED, "config", "share_embedding_weights"),
    "heads that do not divide": (keys("config.json", n_head=7), SIGNED, "config", "config.json"),
    "a learned position type": (keys("config.json", position_embedding_type="learned"), SIGNED, "config", "alibi"),
    "a wrong eos id": (keys("config.json", eos_token_id=5), SIGNED, "generation", "eos_token_id"),
    "a pad id outside": (keys("config.json", pad_token_id=700), SIGNED, "config", "pad_token_id 700"),
    "an unknown token to generate": (keys(GEN, eos_token_id=9000), SIGNED, "generation", "9000"),
    "other sampling": (keys(GEN, temperature=1.5), SIGNED, "generation", "temperature"),
    "a mislabelled type": (keys("config.json", torch_dtype="bfloat16"), SIGNED, "weights", "torch_dtype"),
    "half-precision slopes": (
        _with("transformer.relative_pe.slopes", lambda a: a.astype(np.float16)),
        AS_IS,
        "weights",
        "slopes",
    ),
    "wrong slopes": (_with("transformer.relative_pe.slopes", lambda a: a * 2), AS_IS, "weights", "slopes"),
    "a truncated shard": (bytes_of(SHARDS[1], lambda b: b[:-100]), AS_IS, "weights", SHARDS[1]),
    "a missing shard": (without(SHARDS[1]), AS_IS, "weights", SHARDS[1]),
    "an index of a missing shard": (_unknown_shard, SIGNED, "weights", "model-00003-of-00003"),
    "an extra tensor": (tensors(lambda t: t | {"extra": np.ones(2, np.float32)}), AS_IS, "weights", "extra"),
    "a NaN": (_with("transformer.ln_f.bias", _nan), AS_IS, "values", "transformer.ln_f.bias"),
    "swapped tensors": (tensors(_swapped), AS_IS, "values", "ffn.ffn.0.linear_layer"),
    "a changed weight": (_with("transformer.ln_f.bias", lambda a: a + 1), AS_IS, "values", "transformer_decoder.norm"),
    "a head that is not tied": (_with("lm_head.weight", lambda a: a + 1), AS_IS, "weights", "lm_head.weight"),
    "a wrong shape": (_with("transformer.ln_f.bias", lambda a: a[:-1]), AS_IS, "weights", "transformer.ln_f.bias"),
    "a byte order mark": (bytes_of("config.json", lambda b: b"\xef\xbb\xbf" + b), SIGNED, "json", "config.json"),
    "broken JSON": (bytes_of(GEN, lambda b: b[:-3]), SIGNED, "json", GEN),
    "a key twice": (edit("config.json", "{", '{"n_layer": 2,'), SIGNED, "json", "key twice"),
    "no manifest": (without("manifest.json"), AS_IS, "manifest", "manifest.json"),
    "a file beside": (lambda r: (r / "more.bin").write_bytes(b"x"), AS_IS, "manifest", "more.bin"),
    "an adapter beside": (lambda r: (r / "adapter_config.json").write_text("{}"), AS_IS, "manifest", "adapter"),
    "no licence": (edit("README.md", "license: apache-2.0\n", ""), AS_IS, "card", "license"),
    "no card": (without("README.md"), AS_IS, "card", "README.md"),
    "broken front matter": (edit("README.md", "license: ", "license: ["), AS_IS, "card", "README.md"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_named(whole, tmp_path, damage):
    change, signed, name, words = DAMAGES[damage]
    release = tmp_path / "release"
    shutil.copytree(whole, release)
    change(release)
    if signed:
        _sign(release)
    found = failures(checked(release))
    assert words in found.get(name, ""), found


def test_an_earlier_version_of_the_code_is_named(whole, tmp_path, monkeypatch):
    from checkpoint_convert.verify import code_versions, release_code

    release = tmp_path / "release"
    shutil.copytree(whole, release)
    old = release / "modeling_jais.py"
    old.write_text(old.read_text(encoding="utf-8") + "# earlier\n", encoding="utf-8")
    _sign(release)
    version = release_code.read_code(release).digests
    known = (version, *code_versions.known_versions())
    monkeypatch.setattr(release_code, "known_versions", lambda: known)
    found = failures(checked(release))
    assert found.keys() == {"code"} and "modeling_jais.py: an earlier version" in found["code"]


def test_llama_2s_notice_is_demanded(tmp_path):
    release = release_of(tmp_path, "llama", False)
    (release / "NOTICE").unlink()
    assert "NOTICE" in failures(checked(release))["card"]
