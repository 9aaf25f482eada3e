"""No verb runs code of a release that is not this package's, and a release is what its manifest says, file by file.

Contract: other code is named with its file and is exit status 1, whatever the manifest says; it runs only under
`verify --logits --trust-release-code`; nothing is fetched, even then. Every file of a release is covered: what differs
from the manifest is named, and only what is meant to be edited is a note.
"""

import inspect
import json
import shutil
import socket

import pytest
from blake3 import blake3
from click.testing import CliRunner

from checkpoint_convert.cli import cli
from checkpoint_convert.convert import convert_to_hf
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.verify import code_versions
from checkpoint_convert.verify.logits import compare_logits
from checkpoint_convert.verify.release_code import classes_of, read_code
from tests.checkpoint_convert.examples import VARIANTS, random_model, state_of, write_checkpoint
from tests.checkpoint_convert.test_release import TOKENS, write_tokenizer
from tests.marks import slow_except

FAMILIES = {"jais": "jais-12-heads", "llama": "llama-40-heads-grouped"}
LOCAL = {"AutoConfig": "modeling_other.OtherConfig", "AutoModelForCausalLM": "modeling_other.OtherModel"}
OTHER_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OtherConfig(LlamaConfig): pass
class OtherModel(LlamaForCausalLM): pass
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Family -> a checkpoint and its release, to be copied."""
    found = {}
    for family, name in FAMILIES.items():
        directory = tmp_path_factory.mktemp(family)
        checkpoint = write_checkpoint(directory / "c.mdl", VARIANTS[name], state_of(random_model(VARIANTS[name])))
        tokenizer = write_tokenizer(directory / "tokenizer", TOKENS)
        convert_to_hf(checkpoint, directory / "release", tokenizer=tokenizer)
        found[family] = directory
    return found


@pytest.fixture
def pair(made, tmp_path):
    """Makes a fresh copy of a family's release, and gives the checkpoint too."""

    def copy(family):
        release = shutil.copytree(made[family] / "release", tmp_path / "release")
        return made[family] / "c.mdl", release

    return copy


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Sockets to other machines cannot be made, nor names looked up."""

    def refuse(*arguments, **keywords):
        raise AssertionError(f"the network was used: {arguments} {keywords}")

    class LocalSocket(socket.socket):
        def __init__(self, family=-1, *arguments, **keywords):
            if family in (-1, socket.AF_INET, socket.AF_INET6):
                refuse(family)
            super().__init__(family, *arguments, **keywords)

    monkeypatch.setattr(socket, "socket", LocalSocket)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def run(*words):
    result = CliRunner().invoke(cli, list(map(str, words)))
    assert result.exception is None or isinstance(result.exception, (SystemExit, ConversionError)), result.exception
    return result


def digest(path):
    return blake3(path.read_bytes()).hexdigest()


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_manifest(release):
    """Make the manifest list the files as they are, as whoever tampers with a release would."""
    names = sorted(p.relative_to(release).as_posix() for p in release.rglob("*") if p.is_file())
    others = [name for name in names if not name.endswith(".safetensors") and name != "manifest.json"]
    change_json(release / "manifest.json", files={name: digest(release / name) for name in others})


def leave_mark(file, mark):
    """Add a line to a Python file that makes the file `mark` when it runs."""
    with open(file, "a") as code:
        code.write(f"\nopen({str(mark)!r}, 'w').close()\n")


def marked_code(release, mark):
    leave_mark(release / "modeling_jais.py", mark)


def marked_extra_file(release, mark):
    leave_mark(release / "more_jais.py", mark)
    change_json(release / "config.json", auto_map=LOCAL | {"AutoConfig": "more_jais.Config"})


def marked_llama_code(release, mark):
    (release / "modeling_other.py").write_text(OTHER_CODE)
    leave_mark(release / "modeling_other.py", mark)
    change_json(release / "config.json", auto_map=LOCAL)


def code_of_another_repository(release, mark):
    marked_llama_code(release, mark)
    change_json(release / "config.json", auto_map={kind: f"someone/else--{name}" for kind, name in LOCAL.items()})


def kernel_of_another_repository(release, mark):
    change_json(release / "config.json", _attn_implementation="someone/kernel")


def code_of_the_tokenizer(release, mark):
    leave_mark(release / "tokenization_other.py", mark)
    change_json(release / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_other.Other", None]})


def config_named_twice(release, mark):
    leave_mark(release / "tokenization_other.py", mark)
    text = (release / "tokenizer_config.json").read_text()
    twice = '{"auto_map": {}, "auto_map": {"AutoTokenizer": ["tokenization_other.Other", null]}, '
    (release / "tokenizer_config.json").write_text(text.replace("{", twice, 1))


def code_of_the_generation(release, mark):
    (release / "custom_generate").mkdir()
    leave_mark(release / "custom_generate" / "generate.py", mark)


def linked_directory(release, mark):
    elsewhere = release.parent / "elsewhere"
    elsewhere.mkdir()
    leave_mark(elsewhere / "generate.py", mark)
    (release / "custom_generate").symlink_to(elsewhere)


def compiled_code(release, mark):
    (release / "modeling_jais.cpython-311-x86_64-linux-gnu.so").write_bytes(b"\x7fELF")


TAMPERED = {
    marked_code: ("jais", "modeling_jais.py: not a version of this package's code"),
    marked_extra_file: ("jais", "more_jais.py: not a version of this package's code"),
    compiled_code: ("jais", "gnu.so: code that no version of this package has"),
    code_of_the_tokenizer: ("llama", "tokenizer_config.json: auto_map.AutoTokenizer names ['tokenization_other.Other'"),
    config_named_twice: ("jais", "tokenizer_config.json: not a readable JSON object; it may name code"),
    code_of_the_generation: ("jais", "custom_generate/generate.py: not a version of this package's code"),
    linked_directory: ("jais", "custom_generate: a link to a directory"),
    marked_llama_code: ("llama", "config.json: auto_map.AutoConfig names 'modeling_other.OtherConfig', which is not"),
    code_of_another_repository: ("llama", "config.json: auto_map.AutoConfig names 'someone/else--modeling_other"),
    kernel_of_another_repository: ("llama", "config.json: _attn_implementation names 'someone/kernel', which is not"),
}


@pytest.mark.slow
@pytest.mark.parametrize("manifest", slow_except(["rewritten"], ["as it was", "rewritten", "removed"]))
@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_other_code_is_named_and_no_verb_runs_it(pair, tmp_path, tamper, manifest):
    family, said = TAMPERED[tamper]
    checkpoint, release = pair(family)
    mark = tmp_path / "mark"
    tamper(release, mark)
    if manifest == "rewritten":
        rewrite_manifest(release)
    if manifest == "removed":
        (release / "manifest.json").unlink()
    alone = [] if manifest == "removed" else [("verify", release)]
    for words in [("verify", checkpoint, release), ("diff", release, checkpoint), *alone]:
        result = run(*words)
        assert result.exit_code == 1, result.output
        assert f"  {release}/" in result.output and said in result.output
    logits = run("verify", checkpoint, release, "--logits")
    assert logits.exit_code == 1 and said in logits.output and "logits: not compared" in logits.output
    found = json.loads(run("verify", checkpoint, release, "--logits", "--json").output)
    assert not found["same"] and found["logits"] is None and found["code"]
    with pytest.raises(ConversionError, match=r"is not run.*--trust-release-code"):
        compare_logits(checkpoint, release)
    assert run("inspect", release).exit_code == 0
    assert run("to-cerebras", release, "--output", tmp_path / "back.mdl").exit_code == 0
    assert not mark.exists()


@pytest.mark.parametrize("tamper", [marked_code, marked_llama_code], ids=lambda tamper: tamper.__name__)
def test_code_that_is_trusted_runs_and_is_a_note(pair, tmp_path, tamper):
    checkpoint, release = pair(TAMPERED[tamper][0])
    tamper(release, tmp_path / "mark")
    rewrite_manifest(release)
    result = run("verify", checkpoint, release, "--logits", "--trust-release-code")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "mark").exists()
    assert "logits: largest difference" in result.output and "first layer that differs" not in result.output
    assert "it is trusted (--trust-release-code)" in result.output


@pytest.mark.parametrize(
    "tamper", [code_of_another_repository, kernel_of_another_repository], ids=lambda tamper: tamper.__name__
)
def test_code_elsewhere_is_not_fetched_even_when_code_is_trusted(pair, tmp_path, tamper):
    checkpoint, release = pair("llama")
    tamper(release, tmp_path / "mark")
    result = run("verify", checkpoint, release, "--logits", "--trust-release-code")
    assert isinstance(result.exception, ConversionError)
    assert "config.json: " in str(result.exception) and "code is never downloaded" in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "mark").exists()


def test_trust_is_an_option_of_logits_alone(pair):
    checkpoint, release = pair("jais")
    result = run("verify", checkpoint, release, "--trust-release-code")
    assert result.exit_code == 2 and "--trust-release-code needs --logits" in result.output


def test_what_is_run_is_what_was_looked_at(pair, tmp_path):
    _, release = pair("jais")
    code = read_code(release)
    leave_mark(release / "modeling_jais.py", tmp_path / "mark")
    with classes_of(code, trust=False) as (_, model_class):
        assert model_class.__name__ == "JAISLMHeadModel"
    assert not (tmp_path / "mark").exists()


def with_earlier_code(release, monkeypatch):
    """Give a release code that is known as an earlier version's, and returns its name -> digest."""
    path = release / "modeling_jais.py"
    path.write_text(path.read_text() + "\n# as it was\n")
    earlier = {name: digest(release / name) for name in code_versions.CODE_FILES}
    monkeypatch.setattr(code_versions, "VERSIONS", (earlier, *code_versions.VERSIONS))
    rewrite_manifest(release)
    return earlier


def test_earlier_code_of_this_package_is_its_code(pair, monkeypatch):
    checkpoint, release = pair("jais")
    with_earlier_code(release, monkeypatch)
    result = run("verify", checkpoint, release, "--logits")
    assert result.exit_code == 0, result.output
    assert "logits: largest difference" in result.output
    assert f"note: {release}: its code is an earlier version of this package's" in result.output
    with classes_of(read_code(release), trust=False) as (_, model_class):
        assert "# as it was" in inspect.getsource(inspect.getmodule(model_class))


def test_files_of_two_versions_are_of_no_version(pair, monkeypatch):
    checkpoint, release = pair("jais")
    earlier = with_earlier_code(release, monkeypatch)
    monkeypatch.setattr(code_versions, "VERSIONS", ({**earlier, "alibi_jais.py": "0" * 64},))
    result = run("verify", checkpoint, release)
    assert result.exit_code == 1
    assert "alibi_jais.py: of another version of this package's code" in result.output


def test_a_jais_release_without_its_code_is_a_difference(pair):
    checkpoint, release = pair("jais")
    (release / "alibi_jais.py").unlink()
    rewrite_manifest(release)
    result = run("verify", checkpoint, release)
    assert result.exit_code == 1 and "alibi_jais.py: missing, but the rest of the code needs it" in result.output


def test_the_current_code_is_in_the_table():
    current = code_versions.current_version()
    lines = "".join(f'        "{name}": "{digest}",\n' for name, digest in current.items())
    assert current in code_versions.VERSIONS, (
        f"the code of Jais releases has changed: add this to VERSIONS in code_versions.py\n    {{\n{lines}    }},"
    )


@pytest.mark.parametrize("stored", ["truncation", "padding"])
def test_a_tokenizer_that_cuts_or_pads_does_not_change_what_is_compared(pair, stored):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    checkpoint, release = pair("jais")
    file = str(release / "tokenizer.json")
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")  # a token for each letter
    tokenizer.save(file)
    positions = compare_logits(checkpoint, release).positions
    if stored == "truncation":
        tokenizer.enable_truncation(1)
    else:
        tokenizer.enable_padding(length=500)
    tokenizer.save(file)
    assert compare_logits(checkpoint, release).positions == positions > 5


# ---- the manifest ---------------------------------------------------------------------------------------------------


def listed(release):
    manifest = json.loads((release / "manifest.json").read_text())
    return manifest["files"], manifest["shards"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_manifest_lists_every_file_and_a_good_release_is_the_same(pair, family):
    checkpoint, release = pair(family)
    files, shards = listed(release)
    assert {*files, *shards, "manifest.json"} == {path.name for path in release.iterdir()}
    assert files == {name: digest(release / name) for name in files}
    count = len(json.loads((release / "manifest.json").read_text())["tensors"])
    alone = run("verify", release)
    assert (alone.exit_code, alone.output.count("\n")) == (0, 2)
    result = run("verify", checkpoint, release, "--logits")
    assert result.exit_code == 0, result.output
    first, second, third = result.output.splitlines()
    assert first.endswith("tensors identical") and third.startswith("logits: largest difference 0 of logits up to ")
    assert second == f"manifest {release}/manifest.json: {count} digests match"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["changed", "removed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_file_that_is_changed_or_missing_is_named(made, pair, tmp_path, family, how):
    checkpoint, _ = pair(family)
    files, _ = listed(made[family] / "release")
    # Without these the weights cannot be opened at all: an error that names them, which other tests claim.
    names = [name for name in files if how == "changed" or name not in ("config.json", "model.safetensors.index.json")]
    for name in names:
        release = shutil.copytree(made[family] / "release", tmp_path / name)
        if how == "removed":
            (release / name).unlink()
        else:
            (release / name).write_bytes((release / name).read_bytes() + b"\n")
        what = "differs from manifest.json" if how == "changed" else "missing, but manifest.json lists it"
        if name.endswith(".py"):
            what = "not a version of this package's code" if how == "changed" else "missing, but the rest of the code"
        edited = name in ("README.md", "NOTICE")
        for words in (("verify", release), ("verify", checkpoint, release), ("diff", checkpoint, release)):
            result = run(*words)
            assert result.exit_code == (0 if edited else 1), (name, result.output)
            assert f"{'note: ' if edited else '  '}{release / name}: {what}" in result.output
            assert result.output.count(str(release / name)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "is_note"),
    [
        ("extra.py", False),
        ("extra.so", False),
        ("pytorch_model.bin", False),
        ("adapter_model.safetensors", False),
        ("more/state.pkl", False),
        ("adapter_config.json", False),
        ("special_tokens_map.json", False),
        ("chat_template.jinja", False),
        ("LICENSE", True),
        ("LICENSE.txt", True),
        ("more/picture.png", True),
    ],
)
def test_each_additional_file_is_named(pair, name, is_note):
    checkpoint, release = pair("jais")
    (release / name).parent.mkdir(exist_ok=True)
    (release / name).write_bytes(b"{}\n" if name.endswith("json") else b"# more\n")
    for words in (("verify", release), ("verify", checkpoint, release), ("diff", checkpoint, release)):
        result = run(*words)
        assert result.exit_code == (0 if is_note else 1)
        assert f"{'note: ' if is_note else '  '}{release / name}: " in result.output
        assert result.output.count(str(release / name)) == 1


def test_a_shard_that_the_manifest_does_not_list_is_named(pair):
    checkpoint, release = pair("jais")
    shard = release / listed(release)[1][0]
    change_json(release / "manifest.json", shards=["other.safetensors"])
    result = run("verify", checkpoint, release)
    assert result.exit_code == 1
    assert f"{shard}: not in manifest.json" in result.output and "other.safetensors: missing" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("manifest", ["rewritten", "absent"])
@pytest.mark.parametrize("name", ["other.safetensors", "adapter_model.safetensors", "adapter_config.json"])
def test_weights_that_were_not_compared_are_named_whatever_the_manifest_says(pair, name, manifest):
    checkpoint, release = pair("jais")
    (release / name).write_bytes(b"{}")
    rewrite_manifest(release)
    if manifest == "absent":
        (release / "manifest.json").unlink()
    result = run("verify", checkpoint, release)
    assert result.exit_code == 1
    assert f"  {release / name}: " in result.output


@pytest.mark.parametrize("key", ["transformers_weights", "quantization_config"])
def test_a_config_that_loads_other_weights_is_named(pair, key):
    checkpoint, release = pair("llama")
    change_json(release / "config.json", **{key: "other.safetensors" if key[0] == "t" else {"bits": 4}})
    rewrite_manifest(release)
    result = run("verify", checkpoint, release)
    assert result.exit_code == 1
    assert f"config.json: with {key}, transformers loads other weights" in result.output


def test_a_file_cannot_hide_among_the_shards(pair):
    checkpoint, release = pair("jais")
    files, shards = listed(release)
    (release / "tokenizer.json").write_text("{}")
    files = {name: digest for name, digest in files.items() if name != "tokenizer.json"}
    change_json(release / "manifest.json", files=files, shards=[*shards, "tokenizer.json"])
    result = run("verify", checkpoint, release)
    assert result.exit_code == 1
    assert "tokenizer.json: listed as weights in manifest.json, but is not one of the weight files" in result.output


def test_a_listed_name_leads_to_no_file_outside_the_release(pair, tmp_path):
    _, release = pair("jais")
    (tmp_path / "secret.json").write_text("{}")
    files, _ = listed(release)
    change_json(release / "manifest.json", files=files | {"../secret.json": digest(tmp_path / "secret.json")})
    result = run("verify", release)
    assert result.exit_code == 1 and "../secret.json: missing" in result.output


def test_hidden_directories_are_left_out(pair):
    _, release = pair("jais")
    (release / ".git").mkdir()
    (release / ".git" / "hook.py").write_text("")
    assert run("verify", release).output.count("\n") == 2


def test_a_manifest_of_the_older_kind_covers_no_files_and_says_so(pair):
    checkpoint, release = pair("jais")
    path = release / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in ("files", "shards")}))
    (release / "tokenizer.json").write_text("{}")
    for words in (("verify", release), ("verify", checkpoint, release)):
        result = run(*words)
        assert result.exit_code == 0
        assert "manifest.json: lists no files; the tokenizer and the other files" in result.output
    path.unlink()
    assert "release: has no manifest; the tokenizer and the other" in run("verify", checkpoint, release).output


@pytest.mark.parametrize(
    "damage",
    [{"files": 3}, {"files": {"a": "b"}}, {"files": {"a": None}}, {"shards": {}}, {"shards": [3]}, {"shards": None}],
)
def test_a_damaged_list_of_files_is_refused(pair, damage):
    checkpoint, release = pair("jais")
    change_json(release / "manifest.json", **damage)
    result = run("verify", checkpoint, release)
    assert isinstance(result.exception, ConversionError) and "the file is damaged" in str(result.exception)
