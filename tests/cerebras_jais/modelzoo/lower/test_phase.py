"""One phase in a process of its own, as far as that needs no Cerebras software: here the process is a stand-in.

Contract: the process gets a trainer that compiles only, in a folder of its own, with data; what it leaves appears whole
or not at all; however it ends, the caller gets the programs or one line with the file and the reason; data that is not
here is stood in for by an empty batch of the shapes that the loader would give.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import pytest
import yaml

from cerebras_jais.catalog.yaml_files import open_config
from cerebras_jais.errors import HUNG_UP, INTERRUPTED, STATUSES, TERMINATED, UserError
from cerebras_jais.modelzoo.lower import phase as lowering
from cerebras_jais.modelzoo.lower.phase import LoweringError, lower_phase, phases_to_lower
from cerebras_jais.modelzoo.process import CIRH_OPT, add_programs_to_path
from tests.cerebras_jais.modelzoo.runs import trainers_of
from tests.marks import slow_except
from tests.process import PATIENCE, has_ended, wait_until

ROOT = Path(__file__).parents[4]
START = "import json, os, pathlib, sys, time; folder = pathlib.Path(sys.argv[1]); "
REQUEST = "request = json.loads((folder / 'request.json').read_text()); "
ANSWER = "(folder / 'answer.json').write_text(json.dumps({'programs': [%s], 'failure': None})); "
PROGRAM = "{'step': 'train', 'name': 'train', 'batch_size': 8, 'checked': 2, 'unknown': 3, 'violations': {}}"
TEXTS = "(folder / 'train.cirh.mlir').write_text('cirh'); (folder / 'train.torch.mlir').write_text('torch'); "


@pytest.fixture(autouse=True)
def an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def phases(monkeypatch):
    """The phases of a built-in config, as if the Cerebras software were installed."""
    monkeypatch.setattr(lowering, "require_modelzoo", lambda: None)

    def of(name="tiny/jais", only=None):
        file = open_config(name)
        return [(file, *pair) for pair in phases_to_lower(file, only)]

    return of


def starting(folder):
    """A script that starts a process, writes both numbers into a file, and does not end."""
    name = str(folder / "pids")
    return (
        "import subprocess; child = subprocess.Popen(['sleep', '600']); "
        f"pathlib.Path({name!r}).write_text(f'{{os.getpid()}} {{child.pid}}\\n'); time.sleep(600)"
    )


def started(folder):
    """The numbers that it has written, none before it has."""
    file = folder / "pids"
    written = file.read_text() if file.exists() else ""
    return [int(number) for number in written.split()] if written.endswith("\n") else []


def lowered(found, script, **options):
    return lower_phase(*found, Path("programs"), child=("-c", START + script), **options)


def test_the_process_gets_a_trainer_that_compiles_only_in_a_folder_of_its_own(phases):
    script = REQUEST + "print(json.dumps(request)); sys.exit(5)"
    with pytest.raises(LoweringError) as error:
        lowered(phases()[0], script)
    request = json.loads(str(error.value).partition("its last words: ")[2])
    init = request["trainer"]["init"]
    assert init["backend"]["backend_type"] == "CSX"
    assert init["backend"]["compile_only"] is True
    assert not Path(init["model_dir"]).is_relative_to(Path.cwd())
    assert request["trainer"]["fit"]["ckpt_path"] is None


def test_what_sends_mail_or_metrics_is_left_out(phases):
    file = Path("run.yaml")
    document = yaml.safe_load(open_config("tiny/jais").text)
    init = trainers_of(document)[0]["init"]
    init["callbacks"] = [{"SlackNotification": {"channels": "x"}}, {"CheckLoss": {}}]
    init["loggers"] = [{"WandbLogger": {"project": "x"}}, {"ProgressLogger": {}}]
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(LoweringError) as error:
        lowered(phases(file)[0], REQUEST + "print(json.dumps(request)); sys.exit(5)")
    init = json.loads(str(error.value).partition("its last words: ")[2])["trainer"]["init"]
    assert init["callbacks"] == [{"CheckLoss": {}}]
    assert init["loggers"] == [{"ProgressLogger": {}}, {"TelemetryLogger": None}]


def test_the_programs_appear_under_the_name_of_their_step(phases):
    found = lowered(phases()[0], TEXTS + ANSWER % PROGRAM)
    (program,) = found.programs
    assert (program.cirh.read_text(), program.torch.read_text()) == ("cirh", "torch")
    assert sorted(os.listdir("programs")) == ["train.cirh.mlir", "train.torch.mlir"]
    assert found.memory > 0


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("os.kill(os.getpid(), 9)", "was ended by the system, as it is where memory runs out"),
        (
            "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 27,) * 2); bytearray(1 << 28)",
            "not enough memory",
        ),
        ("os.abort()", "was ended by the signal SIGABRT"),
        ("print('what it says'); sys.exit(7)", "ended with status 7; its last words: what it says"),
        ("(folder / 'answer.json').write_text('{')", "its answer cannot be read"),
    ],
)
def test_however_the_process_ends_one_line_says_it_and_nothing_is_left(phases, script, words):
    with pytest.raises(LoweringError) as error:
        lowered(phases()[0], script)
    assert str(error.value).startswith("tiny/jais, run: ")
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert os.listdir(".") == []


@pytest.mark.slow
def test_a_process_that_does_not_end_is_ended_with_those_that_it_started(phases, tmp_path, monkeypatch):
    class OnceItHasStarted(threading.Timer):
        def run(self):
            wait_until(lambda: started(tmp_path), "the process that lowers")
            self.function(*self.args)

    monkeypatch.setattr(lowering.threading, "Timer", OnceItHasStarted)
    with pytest.raises(LoweringError, match="was not done after 2 seconds"):
        lowered(phases()[0], starting(tmp_path), seconds=2)
    wait_until(lambda: all(map(has_ended, started(tmp_path))), "the end of what was killed")


# The verbs that lower, in a process without the Cerebras software; the process that lowers is a stand-in.
VERB = """
import importlib, json, sys
from cerebras_jais.modelzoo import installed
installed.require_modelzoo = lambda: None
installed.modelzoo_is_installed = lambda: False
from cerebras_jais.modelzoo.lower import phase
phase.lower_phase.__kwdefaults__["child"] = ("-c", sys.argv.pop(1))
importlib.import_module(sys.argv.pop(1)).main()
"""
VERBS = {
    "lower": ["cerebras_jais.cli", "lower", "tiny/jais"],
    "lower --output": ["cerebras_jais.cli", "lower", "tiny/jais", "--output", "programs"],
    "config check": ["cerebras_jais.cli", "config", "check", "--lower", "tiny/jais"],
    "fit": ["cerebras_jais.modelzoo.launch", json.dumps({"file": "tiny/jais", "lower_only": True})],
}
SIGNALS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED, signal.SIGHUP: HUNG_UP}
STOPPED = [*(("lower", number) for number in SIGNALS), *((verb, signal.SIGTERM) for verb in VERBS if verb != "lower")]


@pytest.mark.parametrize("stopped", slow_except([("lower", signal.SIGHUP)], STOPPED), ids=str)
def test_a_signal_to_a_verb_that_lowers_leaves_no_process_and_no_folder(stopped, tmp_path):
    verb, number = stopped
    scratch, here = tmp_path / "scratch", tmp_path / "here"
    scratch.mkdir()
    here.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", VERB, START + starting(tmp_path), *VERBS[verb]],
        cwd=here,
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until(lambda: started(tmp_path) or process.poll() is not None, "the process that lowers")
            assert process.poll() is None, process.communicate()
            assert len(list(scratch.glob("cerebras-jais-*"))) == 2
            process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE)
        except BaseException:
            for pid in [process.pid, *started(tmp_path)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise
    assert (process.returncode, out, err.strip()) == (SIGNALS[number], "", STATUSES[SIGNALS[number]])
    wait_until(lambda: all(map(has_ended, started(tmp_path))), "the end of the process that lowers, and of its own")
    assert list(scratch.glob("cerebras-jais-*")) == list(here.iterdir()) == []


def test_programs_that_are_there_are_not_replaced(phases):
    Path("programs").mkdir()
    Path("programs/mine").touch()
    with pytest.raises(UserError, match="programs: already exists"):
        lowered(phases()[0], TEXTS + ANSWER % PROGRAM)
    assert os.listdir("programs") == ["mine"]


def test_a_phase_without_data_or_optimizer_is_refused_at_the_key(phases):
    document = yaml.safe_load(open_config("tiny/jais").text)
    del trainers_of(document)[0]["init"]["optimizer"]
    Path("run.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(LoweringError, match=r"run.yaml, line \d+: trainer.init.optimizer: missing; add AdamW"):
        lowered(phases("run.yaml")[0], ANSWER % "")


def test_a_phase_that_a_config_does_not_have_is_refused(phases):
    assert [phase.number for _, phase, _ in phases("tiny/context", 2)] == [2]
    with pytest.raises(UserError, match="tiny/context: has 3 phases; there is no phase 4"):
        phases("tiny/context", 4)


# ---- data ------------------------------------------------------------------------------------------------------------

SHAPES = (
    "import h5py; "
    + REQUEST
    + (
        "loaders = request['trainer']['fit'];"
        "found = {k: (v, [h5py.File(f)['data'].shape for f in pathlib.Path(v['data_dir']).glob('*.h5')])"
        " for k, v in loaders.items() if k.endswith('loader')};"
        "print(json.dumps(found)); sys.exit(5)"
    )
)


def loaders_of(found):
    with pytest.raises(LoweringError) as error:
        lowered(found, SHAPES)
    return json.loads(str(error.value).partition("its last words: ")[2])


@pytest.mark.parametrize(("name", "features"), [("tiny/jais", 3), ("tiny/chat", 5)])
def test_one_empty_batch_stands_in_for_data_that_is_not_here(phases, name, features):
    found = phases(name)[0]
    section, shapes = loaders_of(found)["train_dataloader"]
    config = found[1].config
    batch = config.fit.train_dataloader.batch_size
    assert shapes == [[batch, features, config.init.model.max_position_embeddings]]
    assert section["num_workers"] == 0


def test_data_that_is_here_is_read_as_the_config_says(phases):
    folder = Path("data/train")
    folder.mkdir(parents=True)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("data", (64, 3, 128), "i4")
    loaders = loaders_of(phases()[0])
    section, shapes = loaders["train_dataloader"]
    assert (section["data_dir"], section["shuffle"]) == (str(folder.resolve()), True)
    assert shapes == [[64, 3, 128]]
    assert loaders["val_dataloader"][0]["data_dir"] != ["data/held_out/ar", "data/held_out/en"]


# ---- the program that lowers -----------------------------------------------------------------------------------------


def test_the_environment_of_this_python_comes_first_on_path_where_it_has_the_program(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / name))
    monkeypatch.setenv("PATH", "/usr/bin")
    add_programs_to_path()
    assert os.environ["PATH"] == "/usr/bin"
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / CIRH_OPT).touch()
    add_programs_to_path()
    add_programs_to_path()
    assert os.environ["PATH"] == f"{tmp_path / 'scripts'}:/usr/bin"


def test_the_verb_says_what_is_missing_where_the_cerebras_software_is_not_installed(monkeypatch):
    hidden = (
        "import importlib.util as util, sys; find = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name.startswith('cerebras.') else find(name, package)\n"
        "from cerebras_jais.cli import main; sys.argv = ['cerebras-jais', *sys.argv[1:]]; main()"
    )
    for words in (["lower", "tiny/jais"], ["config", "check", "--lower", "tiny/jais"]):
        done = subprocess.run([sys.executable, "-c", hidden, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("error: cerebras.pytorch is not installed in ")
        assert len(done.stderr.splitlines()) == 1
