"""What the two programs print today, pinned word for word in the text files beside this module.

Contract: golden files change only in commits that change messages; a commit that only moves code leaves them as they
are. `python -m tests.golden.test_golden --write` writes them anew, from any directory that has `tests` on its path.

Both programs run in this process through their entry points, 80 columns wide, in an empty folder and as if no Cerebras
package were installed. Lines of standard error begin with "! ". What a machine or the version of a library decides is
replaced by a word in capitals, and files whose bytes depend on a library are digested by what they hold.
"""

import contextlib
import copy
import hashlib
import importlib.util
import io
import os
import platform
import re
import sys
import tempfile
from pathlib import Path
from unittest import mock

import click
import h5py
import hdf5plugin  # noqa: F401  # lets h5py read LZ4
import numpy as np
import pytest
import yaml

import cerebras_jais.cli
import checkpoint_convert.cli
from tests.cerebras_jais.launch.broken import BROKEN
from tests.cerebras_jais.launch.variants import VARIANTS
from tests.cerebras_jais.train.examples import write_data
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint
from tests.test_wrong_input import LENGTH, VOCABULARY, preset

GOLDEN = Path(__file__).parent
CONFIGS = GOLDEN.parents[1] / "configs"
KINDS = ("tiny", "jais-adapted-7b", "jais-family-590m", "jais-family-30b-8k")
FILES = [path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "data"]  # those are data runs
NAMES = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in FILES)
PROGRAMS = {"cerebras-jais": cerebras_jais.cli, "checkpoint-convert": checkpoint_convert.cli}
FIND_SPEC = importlib.util.find_spec


# ---- running a command -----------------------------------------------------------------------------------------------


def _find_no_cerebras(name, package=None):
    return None if name.partition(".")[0] == "cerebras" else FIND_SPEC(name, package)


def _become(_, arguments):
    """In place of os.execv: do here what `python -m MODULE ARGUMENT...` would do, and end as it ends."""
    sys.argv = arguments[2:]
    importlib.import_module(arguments[2]).main()


@contextlib.contextmanager
def surroundings():
    """An empty working directory, and an environment in which every machine prints the same."""
    environment = {"COLUMNS": "80", "CSCONFIG_PATH": "config_v2"}
    with (
        tempfile.TemporaryDirectory(prefix="cerebras_jais_golden_") as folder,
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", sys.argv),
        mock.patch.object(os, "execv", _become),
        mock.patch.object(importlib.util, "find_spec", _find_no_cerebras),
    ):
        yield


def printed(command):
    """The section of a command: what it prints and its exit status."""
    program, *arguments = command.split()
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [program, *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        PROGRAMS[program].main()
    errors = "".join(f"! {line}\n" for line in err.getvalue().splitlines())
    return f"$ {command}\n{portable(out.getvalue())}{portable(errors)}status {ended.value.code or 0}\n"


def portable(text):
    """A text without what depends on the machine or on versions of libraries."""
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    text = text.replace(system, "SYSTEM").replace(f"installed in {sys.prefix};", "installed in PREFIX;")
    text = re.sub(r"Try '(.*) -h' for help", r"Try '\1 --help' for help", text)  # older clicks name -h
    text = re.sub(r"stored_eof = \d+", "stored_eof = SIZE", text)
    text = re.sub(r"with about \d+ MB of memory", "with about MEMORY MB of memory", text)
    return re.sub(r"where \S+ GB are free", "where FREE GB are free", text)


# ---- help ------------------------------------------------------------------------------------------------------------


def verbs(command, name):
    """The names of a command and of everything below it."""
    command._help_option = None  # click keeps the first it made, without -h if a test ran the verb alone
    yield name
    if isinstance(command, click.Group):
        context = click.Context(command)
        for verb in command.list_commands(context):
            yield from verbs(command.get_command(context, verb), f"{name} {verb}")


def help_pages(program):
    """A section for each verb."""
    return [printed(f"{verb} --help") for verb in verbs(PROGRAMS[program].cli, program)]


# ---- configs ---------------------------------------------------------------------------------------------------------


def catalog():
    """What the tables say of models and configs."""
    commands = ("models", "models jais-family-590m", "models jais-adapted-70b-chat", "config list")
    pairs = ("jais-family-590m jais-family-1p3b", "jais-adapted-7b/stage-1 jais-adapted-7b/stage-2")
    return [printed(f"cerebras-jais {c}") for c in (*commands, *(f"config diff {pair}" for pair in pairs))]


def checks():
    """`config check` of every config."""
    return [printed(f"cerebras-jais config check {name}") for name in NAMES]


def dry_runs():
    """`fit --dry-run` of every config."""
    return [printed(f"cerebras-jais fit {name} --dry-run") for name in NAMES]


def dry_runs_on_csx():
    """The same for CS systems, of configs of every kind."""
    names = [name for name in NAMES if name.startswith(KINDS)]
    return [printed(f"cerebras-jais fit {name} --dry-run --backend csx") for name in names]


# ---- wrong input -----------------------------------------------------------------------------------------------------


def judged(name, text):
    """What `config check` says of a YAML."""
    Path("run.yaml").write_text(text, encoding="utf-8")
    return f"# {name}\n{printed('cerebras-jais config check run.yaml')}"


def broken():
    """`config check` of each broken YAML."""
    return [judged(case.name, case.text()) for case in BROKEN]


def variants():
    """`config check` of each variant of a YAML for a CS system."""
    return [judged(v.name, yaml.safe_dump(v.document(), sort_keys=False)) for v in VARIANTS]


def wrong_input():
    """What `fit` and the converter say of mistakes, each in a folder where nothing else is wrong."""
    write_data(Path("data"), samples=6, length=LENGTH, vocabulary=VOCABULARY)
    params = preset()
    write_checkpoint(Path("m.mdl"), *tiny_model(params["trainer"]["init"]["model"]))
    whole = Path("m.mdl").read_bytes()
    for name, kept in (("empty", 0), ("short", 5000)):
        Path(f"{name}.mdl").write_bytes(whole[:kept])
    Path("nothing").mkdir()
    Path("bad.txt").write_bytes(b"\xff\xfe\x00abc")

    def fit(change, options=""):
        changed = copy.deepcopy(params)
        keys, value = change
        at = changed["trainer"]
        *path, last = keys.split(".")
        for key in path:
            at = at[key]
        at[last] = value
        Path("run.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
        return f"# {keys}: {value}\n{printed(f'cerebras-jais fit run.yaml{options}')}"

    seed = ("init.seed", 1)
    return [
        fit(("fit.train_dataloader.data_dir", "nowhere")),
        fit(("init.model.vocab_size", 50)),
        fit(("init.model.max_position_embeddings", 16)),
        fit(("init.loop.max_stepz", 3)),
        fit(("init.model.hiden_size", 3)),
        fit(seed, " --checkpoint empty.mdl"),
        fit(seed, " --checkpoint short.mdl"),
        fit(seed, " --checkpoint absent.mdl"),
        fit(seed, " --num-csx 2"),
        fit(("init.model.filter_size", 96), " --checkpoint m.mdl --max-steps 30"),
        printed("checkpoint-convert to-hf m.mdl --config run.yaml --output release"),
        *(printed(f"checkpoint-convert to-hf {name}.mdl --output release") for name in ("empty", "short", "absent")),
        printed("checkpoint-convert to-hf m.mdl --output nothing"),
        printed("checkpoint-convert to-hf m.mdl --output release --max-shard-size many"),
        printed("checkpoint-convert to-cerebras nothing --output x.mdl"),
        printed("checkpoint-convert inspect bad.txt"),
        printed("checkpoint-convert verify m.mdl"),
        printed("cerebras-jais fit absent.yaml"),
        printed("cerebras-jais config check absent.yaml"),
        printed("cerebras-jais config show absent"),
        printed("cerebras-jais models absent"),
        printed("cerebras-jais data tokenizer --text bad.txt --vocab-size 300 --output t"),
        printed("cerebras-jais absent"),
        printed("cerebras-jais fit"),
    ]


# ---- conversions -----------------------------------------------------------------------------------------------------


def tiny_model(section):
    """A section and weights for it that every machine makes alike: fractions of 2**24, without arithmetic."""
    state = state_of(random_model(section))
    numbers = np.random.RandomState(0)
    for name, array in state.items():
        if not name.endswith("slopes"):
            array[...] = (numbers.randint(-(2**23), 2**23, array.shape) / 2**24).astype(np.float32)
    return section, state


def conversion(config):
    """A tiny model to a release and back: what is printed, and a digest of every file."""
    params = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text(encoding="utf-8"))
    write_checkpoint(Path("c.mdl"), *tiny_model(params["trainer"]["init"]["model"]))
    to_hf, to_cerebras = "checkpoint-convert to-hf c.mdl --output", "checkpoint-convert to-cerebras"
    commands = (
        "checkpoint-convert inspect c.mdl",
        f"{to_hf} release --max-shard-size 4MB --dry-run",
        f"{to_hf} release --max-shard-size 4MB",
        f"{to_hf} half --dtype bf16",
        "checkpoint-convert inspect release",
        f"{to_cerebras} release --output back.mdl --dry-run",
        f"{to_cerebras} release --output back.mdl",
        f"{to_cerebras} half --output packed.mdl --compression lz4",
        "checkpoint-convert inspect packed.mdl",
        "checkpoint-convert verify c.mdl release",
        "checkpoint-convert verify back.mdl",
        "checkpoint-convert diff c.mdl packed.mdl",
    )
    sections = [printed(command) for command in commands]
    files = [path for path in sorted(Path().rglob("*")) if path.is_file()]
    return [*sections, "".join(f"{digest(path)}  {path}\n" for path in files)]


def digest(path):
    """SHA-256 of the bytes of a file; of a .mdl, whose bytes the HDF5 library decides, of all that it holds."""
    if path.suffix != ".mdl":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    found = hashlib.sha256()

    def add(name, item):
        found.update(repr((name, sorted((key, plain(value)) for key, value in item.attrs.items()))).encode())
        if isinstance(item, h5py.Dataset):
            found.update(repr((item.dtype.str, item.shape, item.chunks)).encode())
            found.update(np.asarray(item[()]).tobytes())

    with h5py.File(path) as file:
        add("/", file)
        file.visititems(add)
    return found.hexdigest()


def plain(value):
    """An attribute as text that does not depend on the version of numpy."""
    return str(value.tolist() if isinstance(value, np.generic | np.ndarray) else value)


# ---- the files -------------------------------------------------------------------------------------------------------

FILES = {
    "help-cerebras-jais.txt": lambda: help_pages("cerebras-jais"),
    "help-checkpoint-convert.txt": lambda: help_pages("checkpoint-convert"),
    "catalog.txt": catalog,
    "config-check.txt": checks,
    "dry-run.txt": dry_runs,
    "dry-run-csx.txt": dry_runs_on_csx,
    "broken.txt": broken,
    "variants.txt": variants,
    "wrong-input.txt": wrong_input,
    "conversion-jais.txt": lambda: conversion("tiny/jais"),
    "conversion-adapted.txt": lambda: conversion("tiny/adapted"),
}


def content(name):
    """A golden file as the programs make it now."""
    with surroundings():
        return "\n".join(FILES[name]())


@pytest.mark.parametrize("name", FILES)
def test_what_the_programs_print_is_as_it_was(name):
    assert content(name).splitlines() == (GOLDEN / name).read_text(encoding="utf-8").splitlines()


def test_every_golden_file_is_made_here():
    assert {path.name for path in GOLDEN.glob("*.txt")} == set(FILES)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.golden.test_golden --write")
    for file in FILES:
        (GOLDEN / file).write_text(content(file), encoding="utf-8")
