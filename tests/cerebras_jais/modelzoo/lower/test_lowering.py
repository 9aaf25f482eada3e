"""The Model Zoo lowers every phase of every config to a program, without a cluster, and the programs are right.

Contract: weights are the model's to the digit; matrix products are those of the estimate; a step changes the tensors
that train and no other, and holds optimizer state of those alone; the loss mask and the spans of packed examples are
inputs; another learning rate is the same program and another context is not; nobody is contacted; what is broken in a
model or in its surroundings is one line.
"""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from cerebras_jais.catalog.yaml_files import open_config, presets
from cerebras_jais.cirh.program import read_program
from cerebras_jais.launch.estimate import model_size
from cerebras_jais.model.freeze import trained_names
from cerebras_jais.model.tensors import second_names
from cerebras_jais.modelzoo.lower.phase import LoweringError, lower_phase, phases_to_lower
from cerebras_jais.modelzoo.lower.report import table
from tests.cerebras_jais.modelzoo.runs import ROOT, environment, require_modelzoo, trainers_of

pytestmark = [pytest.mark.modelzoo, pytest.mark.slow]

MEMORY = 4_000_000_000  # bytes, of the process that lowers a phase
TINY = "tiny/jais"


@pytest.fixture(autouse=True)
def modelzoo(tmp_path, monkeypatch):
    require_modelzoo()
    monkeypatch.chdir(tmp_path)


def run(*words, **options):
    """The verb in a process of its own."""
    command = [sys.executable, "-m", "cerebras_jais.cli", *map(str, words)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, **options)


@functools.cache
def facts_of(name):
    """The facts of every phase of a config."""
    done = run("lower", name, "--json")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout)


def phases_of(name):
    """The typed phases of a config and the facts of each."""
    return list(zip([phase for phase, _ in phases_to_lower(open_config(name))], facts_of(name), strict=True))


def inputs_of(config):
    """The features that a program needs: the loss mask always, and of packed examples what attention takes them for."""
    packed = {"attention_span"} if config.fit.train_dataloader.use_vsl else set()
    if packed and config.init.model.position_embedding_type == "rotary":
        packed.add("position_ids")  # ALiBi's distances within a document are those within the row
    return {"input_ids", "labels", "attention_mask"} | packed


def programs_in(lines):
    """The rows of the table of programs, without the names of configs: a list has the programs of its phases."""
    return {line.split("|", 3)[3] for line in lines if line.count("|") == 12}


def training(found):
    (program,) = (program for program in found["programs"] if program["step"] == "train")
    return program


# ---- every config ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [preset.name for preset in presets()])
def test_every_phase_of_every_config_lowers_to_the_program_of_its_model(name):
    document = (ROOT / "docs" / "lowering.md").read_text(encoding="utf-8").splitlines()
    assert programs_in(table(facts_of(name))) <= programs_in(document)
    for phase, found in phases_of(name):
        model = phase.config.init.model
        size, second = model_size(model), second_names(model)
        assert found["memory_bytes"] < MEMORY
        assert found["programs"]
        for program in found["programs"]:
            assert program["violations"] == {}
            assert set(program["inputs"]) == inputs_of(phase.config)
            assert program["weights"]["numbers"] == size.parameters
            assert program["product_flops"] == pytest.approx(program["estimated_flops"], rel=0.01)
        program = training(found)
        changed = {key.removeprefix("model.") for key in program["changed"] if key.startswith("model.")}
        assert {second.get(name, name) for name in changed} == trained_names(model)
        moments = {key for key in program["changed"] if key.endswith("exp_avg")}
        assert len(moments) == len(trained_names(model))


# ---- what a step changes and is given --------------------------------------------------------------------------------


def test_stage_1_changes_the_embedding_and_the_head_and_takes_no_gradient_of_anything_else():
    (phase, first), (_, second) = phases_of("tiny/stages")
    program = training(first)
    own = {"model.model.embedding_layer.word_embeddings.weight", "model.model.lm_head.weight"}
    assert {key for key in program["changed"] if key.startswith("model.")} == own
    assert len(program["read"]) + len(program["untouched"]) >= program["weights"]["tensors"] - 2
    moments = [key for key in (*program["changed"], *program["read"], *program["untouched"]) if "exp_avg" in key]
    assert len(moments) == 4
    # Every gradient of a matrix is a product, and the products are exactly those of the tensors that train.
    assert program["product_flops"] == program["estimated_flops"] < training(second)["product_flops"]
    size = model_size(phase.config.init.model)
    assert size.multiplied_and_trained < size.multiplied


@pytest.mark.parametrize(("name", "slopes"), [("tiny/jais", 1), ("tiny/adapted", 0)])
def test_alibi_models_hold_slopes_and_rotary_models_sines(name, slopes):
    file = open_config(name)
    ((phase, raw),) = phases_to_lower(file)
    lowered = lower_phase(file, phase, raw, Path("programs"))
    program = read_program(lowered.programs[0].cirh.read_text(encoding="utf-8"))
    assert sum("slopes" in (argument.resource or "") for argument in program.arguments) == slopes
    kinds = {operation.kind for operation in program.operations}
    assert ({"Sin", "Cos"} <= kinds) == (not slopes)


# ---- one program or two ----------------------------------------------------------------------------------------------


def _with_rate(init):
    init["schedulers"][0]["SequentialLR"]["schedulers"][0]["LinearLR"]["end_learning_rate"] = 0.01


def _with_systems(init):
    init["backend"] = {"backend_type": "CSX", "cluster_config": {"num_csx": 2}}  # evaluation has 2 samples


def _with_context(init):
    init["model"]["max_position_embeddings"] = 64


@pytest.mark.parametrize(
    ("change", "same", "same_numbers"),
    [(_with_rate, True, False), (_with_systems, True, True), (_with_context, False, False)],
)
def test_another_learning_rate_is_the_same_program_and_another_context_is_not(change, same, same_numbers):
    document = yaml.safe_load(open_config(TINY).text)
    change(trainers_of(document)[0]["init"])
    Path("other.yaml").write_text(yaml.safe_dump(document))
    ours, theirs = training(facts_of(TINY)[0]), training(json.loads(run("lower", "other.yaml", "--json").stdout)[0])
    assert (ours["hash"] == theirs["hash"]) is same
    assert (ours["exact_hash"] == theirs["exact_hash"]) is same_numbers


# ---- nothing is contacted or patched ---------------------------------------------------------------------------------

# Has the system end the process as it connects or sends to anybody (a filter of system calls: seccomp(2), x86-64).
# Sockets alone are no contact: urllib3 makes one as it is imported, to see whether the machine has IPv6.
NO_CONTACT = """
import ctypes, struct
CONNECT, SENDTO, NUMBER = 42, 44, 0
KILL, ALLOW = 0x80000000, 0x7FFF0000
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
rows = [(LOAD, 0, 0, NUMBER), (EQUAL, 2, 0, CONNECT), (EQUAL, 1, 0, SENDTO)]
rows += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, KILL)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rows), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter, 0, 0) == 0, ctypes.get_errno()
"""
LOWER = "from cerebras_jais.modelzoo.lower import child; child.main()\n"


def lower_with(script, name=TINY):
    """Lower the first phase of a config in a process that runs a script first."""
    file = open_config(name)
    phase, raw = phases_to_lower(file)[0]
    return lower_phase(file, phase, raw, Path(tempfile.mkdtemp()) / "programs", child=("-c", script + LOWER))


@pytest.mark.parametrize("contact", ["connect(('127.0.0.1', 1))", "sendto(b'x', ('127.0.0.1', 1))"])
def test_the_filter_ends_a_process_that_contacts_somebody(contact):
    kind = "SOCK_DGRAM" if "sendto" in contact else "SOCK_STREAM"
    with pytest.raises(LoweringError, match="was ended by the signal SIGSYS"):
        lower_with(NO_CONTACT + f"import socket; socket.socket(type=socket.{kind}).{contact}\n")


def test_nobody_is_contacted():
    assert len(lower_with(NO_CONTACT).programs) == 2


def test_nothing_of_the_cerebras_software_is_imported_by_the_caller():
    script = (
        "import sys; from pathlib import Path; from cerebras_jais.catalog.yaml_files import open_config\n"
        "from cerebras_jais.modelzoo.lower.phase import lower_phase, phases_to_lower\n"
        f"file = open_config({TINY!r}); pair = phases_to_lower(file)[0]\n"
        "assert lower_phase(file, *pair, Path('programs')).programs\n"
        "print([name for name in sys.modules if name.startswith(('cerebras.pytorch', 'cerebras.modelzoo'))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr[-2000:]


# ---- what is broken --------------------------------------------------------------------------------------------------

_FFN = """
import torch
from cerebras_jais.modelzoo import plugin
from cerebras.modelzoo.layers.FeedForwardNetwork import FeedForwardNetwork
forward = FeedForwardNetwork.forward
def broken(self, *arguments, **keys):
    x = forward(self, *arguments, **keys)
    {}
    return x
FeedForwardNetwork.forward = broken
"""
_AT_FFN = (
    "line 19: trainer.init.model.nonlinearity: the module model.transformer_decoder.layers.0.ffn cannot be lowered: "
)
BROKEN = {
    "an unsupported operation": (
        _FFN.format("x = torch.special.bessel_j0(x)"),
        f"{_AT_FFN}CS systems have no operation aten::special_bessel_j0; write it in operations that they have",
    ),
    "a condition on data": (
        _FFN.format("x = x * 2 if x.sum() > 0 else x"),
        f"{_AT_FFN}the value of a tensor is wanted while the step is traced",
    ),
    "a value for Python": (
        _FFN.format("x = x * x.mean().item()"),
        f"{_AT_FFN}the value of a tensor is wanted while the step is traced",
    ),
    "a tensor taken from the device": (
        _FFN.format("x = x + x.cpu().to(x.device)"),
        f"{_AT_FFN}the value of a tensor is wanted while the step is traced",
    ),
    "a shape that changes": (
        _FFN.format("x = x + x[x > 0].sum()"),
        f"{_AT_FFN}a shape depends on values, and the shapes of a step are fixed",
    ),
    "shapes that do not fit": (
        _FFN.format("x = x + x[:, :-1]"),
        f"{_AT_FFN}RuntimeError: The size of tensor a (128) must match the size of tensor b (127)",
    ),
    "no PATH": (
        "import os\nfrom cerebras_jais.modelzoo.lower import child\n"
        "child.add_programs_to_path = lambda: os.environ.update(PATH='/nowhere')\n",
        "tiny/jais, run: torch-cirh-opt is not on PATH, and cerebras_pytorch lowers with it; activate the environment",
    ),
    "too little memory": (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1_200_000_000,) * 2)\n",
        "tiny/jais, run: not enough memory to lower it",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_one_line_that_names_the_module_and_the_key(case):
    script, words = BROKEN[case]
    with pytest.raises(LoweringError) as error:
        lower_with(script)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["init"]["model"].update(mup_base_hidden=64), "mup_base_hidden: unknown key; did you mean"),
        (
            lambda t: t["init"]["backend"].update(backend_type="CSX", cluster_config={"num_csx": 9}),
            "trainer.init.backend.cluster_config.num_csx: a step has fewer samples than there are CS systems",
        ),
        (lambda t: t["fit"]["train_dataloader"].update(data_dir="empty"), "No *.h5 files found"),
    ],
)
def test_what_is_wrong_in_a_config_is_one_line_with_its_key(change, words):
    document = yaml.safe_load(open_config(TINY).text)
    change(trainers_of(document)[0])
    Path("broken.yaml").write_text(yaml.safe_dump(document))
    Path("empty").mkdir()
    done = run("lower", "broken.yaml")
    assert done.returncode == 1
    assert done.stderr.startswith("error: broken.yaml, line ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---- the other verbs -------------------------------------------------------------------------------------------------


def test_config_check_and_fit_lower_too():
    checked = run("config", "check", "--lower", TINY)
    assert checked.returncode == 0, checked.stderr[-2000:]
    said = run("fit", TINY, "--backend", "csx", "--lower-only")
    assert said.returncode == 0, said.stderr[-2000:]
    assert training(facts_of(TINY)[0])["hash"][:16] in said.stdout
