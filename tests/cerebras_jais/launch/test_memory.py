"""The memory that a dry run states is what a run takes.

Contract: the activations that a layer keeps are counted byte for byte (autograd's saved tensors), the shares of
weights by FSDP2's own division, and the peak of everything torch allocates in a run of the trainer is within a tenth
of the stated one; what cannot fit, or cannot be divided, is refused in one line that names the largest term.
"""

import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import h5py
import pytest
import torch
from click.testing import CliRunner
from torch.profiler import ProfilerActivity, profile

from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.cli import cli
from cerebras_jais.errors import UserError
from cerebras_jais.launch.memory import (
    Arrangement,
    arrangement_of,
    memory_problem,
    peak,
    saved_bytes,
    share_bytes,
)
from cerebras_jais.launch.plan import PlanError
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.tensors import tensors
from tests import tolerances
from tests.cerebras_jais.train.examples import JAIS, LLAMA, train, trainer_section, write_data, write_yaml
from tests.marks import HAS_FSDP, needs_fsdp
from tests.process import PATIENCE

ROOT = Path(__file__).parents[3]
SIZES = {"hidden_size": 192, "num_heads": 4, "filter_size": 480, "vocab_size": 320, "max_position_embeddings": 256}
ROWS = 3


def config_of(section, layers=1, **changes):
    return DecoderConfig.from_section({**section, **SIZES, "num_hidden_layers": layers, **changes})


def kept_bytes(config, *, half):
    """Of what autograd keeps of a forward pass, each piece of memory once, without parameters and copies of them."""
    model = LanguageModel(config)
    weights = {shape for tensor in model.parameters() for shape in (tensor.shape, tensor.shape[::-1])}
    kept = {}

    def pack(tensor):
        if tensor.shape not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros(ROWS, config.max_position_embeddings, dtype=torch.int32)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        loss = model(batch)
    del loss
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("half", [False, True], ids=["float32", "16 bits"])
@pytest.mark.parametrize("section", [JAIS, LLAMA], ids=["jais", "llama"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_layer_keeps_the_activations_that_are_stated(section, half, dropout):
    config, three, two = (config_of(section, layers=n, dropout_rate=dropout) for n in (1, 3, 2))
    counted = kept_bytes(three, half=half) - kept_bytes(two, half=half)
    stated = saved_bytes(config, Arrangement(rows=ROWS, half=half))
    if section is LLAMA and not HAS_FSDP:  # the kernel of torch 2.4 leaves its result in the order of tokens: no copy
        copy = ROWS * config.max_position_embeddings * config.hidden_size * (2 if half else 4)
        assert stated - copy <= counted < stated
    else:
        assert counted == pytest.approx(stated, rel=tolerances.MEMORY_COUNTED)


def test_the_first_process_has_the_share_that_chunks_have():
    config = config_of(JAIS)
    for tensor in tensors(config):
        for processes in (1, 2, 3, 64, 512):
            whole = torch.empty(tensor.shape, device="meta")
            assert share_bytes(tensor, processes) == 4 * whole.chunk(processes)[0].numel()


def share_of_sixty_four():
    """Print the elements that FSDP2 gives process 0 of 64, by name; their group is no real one."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=64)
    with torch.device("meta"):
        model = LanguageModel(config_of(JAIS))
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (64,)))
    for name, tensor in model.named_parameters():
        print(name, tensor.to_local().numel())


@needs_fsdp
@pytest.mark.slow
def test_the_first_of_sixty_four_processes_has_the_share_that_fsdp_gives_it():
    command = "from tests.cerebras_jais.launch.test_memory import share_of_sixty_four as share; share()"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {name: 4 * int(size) for name, size in map(str.split, done.stdout.splitlines())}
    assert found == {t.name: share_bytes(t, 64) for t in tensors(config_of(JAIS)) if t.same_as is None}


def allocated_peak(profiled):
    """The most bytes that torch had allocated at one moment of a profiled run."""
    events = []

    def walk(nodes):
        for node in nodes:
            if str(node.tag).endswith("Allocation"):
                events.append((node.start_time_ns, node.extra_fields.ptr, node.extra_fields.alloc_size))
            walk(node.children)

    walk(profiled.profiler.kineto_results.experimental_event_tree())
    live, total, most = {}, 0, 0
    for _, pointer, size in sorted(events):
        total -= live.pop(pointer, 0)
        if size > 0:
            live[pointer] = size
            total += size
        most = max(most, total)
    return most


# Each has its peak at another stage.
RUNS = {
    "activations": (JAIS, {"num_hidden_layers": 3}, {}),
    "logits": (LLAMA, {"vocab_size": 6400}, {}),
    "gradients": (JAIS, {"vocab_size": 6400, "max_position_embeddings": 32}, {"rows": 1}),
    "checkpointing": (LLAMA, {"num_hidden_layers": 4}, {"activation_checkpointing": True}),
    "accumulation": (JAIS, {"num_hidden_layers": 2}, {"accumulates": True}),
    "dropout": (JAIS, {"num_hidden_layers": 3, "dropout_rate": 0.1, "attention_dropout_rate": 0.0}, {}),
    "attention dropout": (JAIS, {"num_hidden_layers": 2, "attention_dropout_rate": 0.1}, {}),
    "dropout on long rows": (LLAMA, {"attention_dropout_rate": 0.1, "max_position_embeddings": 1024}, {"rows": 1}),
    "evaluation": (JAIS, {"num_hidden_layers": 2}, {"rows": 1, "held_out_rows": 12}),
    "evaluation in 16 bits": (LLAMA, {"num_hidden_layers": 2}, {"rows": 1, "held_out_rows": 12, "half": True}),
    "evaluated logits": (LLAMA, {"vocab_size": 6400}, {"rows": 1, "held_out_rows": 12}),
    "16 bits": (LLAMA, {"num_hidden_layers": 3}, {"half": True}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "activations" else pytest.mark.slow) for name in RUNS]
)
def test_a_run_allocates_what_is_stated(tmp_path, name):
    section, changes, run = RUNS[name]
    model = {**section, **SIZES, **changes}
    length, size = model["max_position_embeddings"], model["vocab_size"]
    batches = 2 if run.get("accumulates") else 1
    write_data(tmp_path / "train", samples=32, length=length, vocabulary=size)
    with h5py.File(tmp_path / "train" / "a.h5", "r+") as file:
        file["data"][:, 1] = 1  # the loss leaves masked tokens out
    loop = {"max_steps": 2, "eval_frequency": 2 if "held_out_rows" in run else None, "grad_accum_steps": batches}
    precision = {"enabled": run.get("half", False), "fp16_type": "bfloat16", "max_gradient_norm": 1.0}
    section = trainer_section(tmp_path, model, loop=loop, precision=precision)
    section["fit"]["train_dataloader"]["batch_size"] = run.get("rows", ROWS)
    if "held_out_rows" in run:
        write_data(tmp_path / "held_out", samples=24, seed=1, length=length, vocabulary=size)
        section["fit"]["val_dataloader"]["batch_size"] = run["held_out_rows"]
    else:
        section["fit"].pop("val_dataloader")
    (config,) = read_trainer_yaml(write_yaml(tmp_path / "a.yaml", section))
    again = run.get("activation_checkpointing", False)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train(config, model_dir=tmp_path / "run", activation_checkpointing=again)
    arranged = arrangement_of(config, 1, "ddp", activation_checkpointing=again, backend="cpu")
    stage = peak(config.init.model, arranged)
    assert (stage.name == "evaluation") == ("held_out_rows" in run)
    stated = stage.bytes - next(term.bytes for term in stage.terms if term.name == "the process itself")
    assert allocated_peak(profiled) == pytest.approx(stated, rel=tolerances.MEMORY_PEAK)


def test_more_memory_than_there_is_is_refused_before_a_run_and_names_the_largest_term(tmp_path, monkeypatch):
    write_data(tmp_path / "train")
    write_data(tmp_path / "held_out", samples=10, seed=1)
    (config,) = read_trainer_yaml(write_yaml(tmp_path / "a.yaml", trainer_section(tmp_path)))
    monkeypatch.setattr("cerebras_jais.train.parallel.machine_memory", lambda: 10**8)
    with pytest.raises(
        PlanError, match=r"a\.yaml: training takes 0\.4.. GB of memory and has 0\.1; the largest part is"
    ):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({}, "activations, .* GB: add --activation-checkpointing"),
        (
            {"activation_checkpointing": True},
            "activations, .* GB: give a smaller batch_size and more grad_accum_steps, or more",
        ),
        ({"rows": 1, "held_out_rows": 180}, "a batch evaluated, .* GB: give val_dataloader a smaller batch_size"),
        ({"rows": 1, "processes": 2, "sharded": False}, "moments, .* GB: --sharding fsdp"),
        ({"rows": 1, "processes": 2}, "moments, .* GB: take more processes"),
        ({"rows": 1, "processes": 512}, "embedding and head, .* GB: more processes do not make it smaller"),
    ],
)
def test_what_cannot_fit_is_refused_with_a_remedy_for_its_largest_term(changes, remedy):
    config = config_of(LLAMA, vocab_size=64000, hidden_size=4096, num_heads=32, filter_size=11008, layers=32)
    run = Arrangement(**{"processes": 64, "sharded": True, "rows": 512, "backend": "gpu", **changes})
    plenty = 10**15
    assert memory_problem(config, run, plenty) is None
    problem = memory_problem(config, run, 10**9)
    assert "\n" not in problem
    assert re.search(remedy, problem), problem


@pytest.mark.parametrize(("backend", "largest"), [("cpu", "activations"), ("gpu", "the mask of attention")])
def test_where_dropout_on_attention_takes_the_memory_the_remedy_is_to_do_without(backend, largest):
    config = config_of(JAIS, layers=2, attention_dropout_rate=0.1, max_position_embeddings=16384)
    problem = memory_problem(config, Arrangement(backend=backend), 10**8)
    assert re.search(f"the largest part is {largest}, .* GB: without attention_dropout_rate", problem), problem


def dry_run(*options):
    """What a dry run prints."""
    return CliRunner().invoke(cli, ["fit", *options, "--dry-run"], catch_exceptions=False).output


def test_a_dry_run_says_the_memory_of_each_process():
    said = dry_run("jais-adapted-70b/stage-2", "--processes", "64", "--sharding", "fsdp")
    assert "each of 64 processes, fsdp, gpu, 16 bits, 16 x 4,096 tokens at a time" in said
    weights = sum(share_bytes(t, 64) for t in tensors(read_trainer_yaml("jais-adapted-70b/stage-2")[0].init.model))
    assert f"{weights / 1e9:.3g} GB  weights (derived)" in said
    # A sum of thousands of GB is written out, too.
    kept, size, total = re.search(r"checkpoints ([\d,]+) of ([\d,]+) bytes each, ([\d,]+) GB in all", said).groups()
    assert number(total) == round(number(kept) * number(size) / 1e9)


def number(text):
    return int(text.replace(",", ""))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--processes", "60"], "batch_size: 1024 rows cannot be divided among 60 processes; give 1020 or 1080"),
        (["--processes", "2048"], "batch_size: 1024 rows cannot be divided among 2048 processes; give 2048"),
        (["--processes", "64", "--sharding", "fsdp", "--memory-per-process", "80"], "the largest part is activations"),
        (["--processes", "64", "--memory-per-process", "80"], "activations"),
        (["--processes", "1", "--sharding", "fsdp"], "--sharding fsdp: divides the model among processes"),
        (["--memory-per-process", "80"], "--memory-per-process is for --dry-run --processes"),
        (["--processes", "4", "--backend", "csx"], "--processes is for --backend cpu and gpu"),
    ],
)
def test_what_a_dry_run_refuses_is_one_line(options, problem):
    with pytest.raises(UserError) as refused:
        dry_run("jais-adapted-70b/stage-2", *options)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_number_of_processes_without_a_dry_run_is_refused():
    with pytest.raises(UserError, match="--processes is for --dry-run; torchrun says how many run"):
        CliRunner().invoke(cli, ["fit", "tiny/jais", "--processes", "4"], catch_exceptions=False)
