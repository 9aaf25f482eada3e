"""Memory of each process of a divided model, stage by stage, beside its share; and its losses beside one process's.

Several gloo processes on this machine build a model from its seed, train it and write a checkpoint; others read that
checkpoint and train on. For each process the peak above what its imports take is printed, in GB, beside the bound: 1.3
times its share of weights, gradients and moments, and 1.5 GB for activations and the tensors in flight. A folder with
room for one checkpoint (12 bytes for each weight) is needed, and memory for all processes at once.

    python benchmarks/processes.py [--model jais-family-590m] [--processes 4] [--length 512] [--continued-by 2 1]
        [--alone] [--folder DIR]

`--continued-by` has other numbers of processes train on from the same checkpoint, too. `--alone` trains all steps in
one process. The largest difference of a loss is printed. Exit status 1 where a process is above the bound or a loss
differs by more than 1e-5.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
# What differs from configs/MODEL/pretrain.yaml, by name: a small one to try the program with, and one for its test.
SMALLER = {
    "80m": ("jais-family-590m", {"vocab_size": 32768, "hidden_size": 768, "num_hidden_layers": 8, "filter_size": 2048}),
    "25m": ("jais-family-590m", {"vocab_size": 512, "hidden_size": 384, "num_hidden_layers": 10, "filter_size": 1536}),
}
STEPS, MORE_STEPS = 2, 1
ACTIVATIONS = 1.5e9  # bytes


def trainer(model: str, processes: int, length: int, data: Path) -> dict:
    """The YAML of a short run of a model, one row for each process; its data are in `data`."""
    preset, changes = SMALLER.get(model, (model, {}))
    published = yaml.safe_load((ROOT / "configs" / preset / "pretrain.yaml").read_text())["trainer"]["init"]
    section = published["model"] | changes | {"max_position_embeddings": length, "loss_weight": 1 / length}
    rate = {"LinearLR": {"initial_learning_rate": 1e-3, "end_learning_rate": 1e-3, "total_iters": 100}}
    init = {
        "backend": {"backend_type": "CPU"},
        "seed": 1,
        "model": section,
        "optimizer": published["optimizer"],
        "schedulers": [rate],
        "precision": {"enabled": False, "max_gradient_norm": 1.0},
        "loop": {"max_steps": STEPS},
        "checkpoint": {"steps": STEPS},
        "loggers": [],
    }
    loader = {"data_processor": "GptHDF5MapDataProcessor", "data_dir": str(data), "batch_size": processes}
    return {"trainer": {"init": init, "fit": {"train_dataloader": loader}}}


def write_rows(folder: Path, rows: int, length: int, vocabulary: int) -> None:
    """Random tokens."""
    import h5py
    import numpy as np

    folder.mkdir()
    ids = np.random.default_rng(0).integers(0, vocabulary, (rows, length + 1))
    with h5py.File(folder / "a.h5", "w") as file:
        stacked = np.stack([ids[:, :-1], np.ones_like(ids[:, 1:]), ids[:, 1:]], 1)
        file.create_dataset("data", data=stacked.astype(np.int32))
        file.attrs["n_examples"] = rows


# ---- within one process ---------------------------------------------------------------------------------------------


def _memory(key: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def measured(words: list[str], report: Path) -> None:
    """Run `fit` with these words in this process, and write down the peak of each stage above the imports."""
    import accelerate  # noqa: F401  # what a run of several processes imports
    import torch._dynamo
    import torch.distributed.fsdp  # noqa: F401

    from cerebras_jais.commands.fit import fit
    from cerebras_jais.train import loop, steps

    floor = _memory("VmRSS")
    peaks: dict[str, int] = {}

    def staged(name: str, function):
        def call(*arguments, **options):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            try:
                return function(*arguments, **options)
            finally:
                peaks[name] = max(peaks.get(name, 0), _memory("VmHWM") - floor)

        return call

    loop.prepare = staged("reading" if "--checkpoint" in words else "building", loop.prepare)
    steps.Steps.take = staged("training", steps.Steps.take)
    loop.write_checkpoint = staged("writing", loop.write_checkpoint)
    fit.main(words, standalone_mode=False)
    report.with_name(f"{report.name}.{os.environ.get('RANK', 0)}").write_text(json.dumps({"floor": floor, **peaks}))


# ---- all of them ----------------------------------------------------------------------------------------------------


def run(folder: Path, name: str, processes: int, words: list[str]) -> tuple[list[dict], list[float]]:
    """The measurements of each process of a run, and its losses."""
    program = [str(Path(__file__)), "--measure", str(folder / f"{name}.json"), "--"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    sharding = ["--sharding", "fsdp"] if processes > 1 else []
    words = [*words, "--model-dir", str(folder / name), *sharding]
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *program, *words], check=True, env=environment
    )
    with (folder / name / "losses.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    return [json.loads((folder / f"{name}.json.{rank}").read_text()) for rank in range(processes)], losses


def compare(options: argparse.Namespace, folder: Path) -> bool:
    """Print the table; whether all is within its bounds."""
    from cerebras_jais.launch.estimate import model_size
    from cerebras_jais.model.config import DecoderConfig

    processes, length = options.processes, options.length
    content = trainer(options.model, processes, length, folder / "data")
    section = content["trainer"]["init"]["model"]
    write_rows(folder / "data", processes * (STEPS + MORE_STEPS), length, section["vocab_size"])
    yaml_file = folder / "run.yaml"
    yaml_file.write_text(yaml.safe_dump(content, sort_keys=False))
    size = model_size(DecoderConfig.from_section(section))
    share = size.training_bytes / processes
    bound = 1.3 * share + options.activations

    first, losses = run(folder, "first", processes, [str(yaml_file)])
    content["trainer"]["init"]["checkpoint"] = {"steps": 0}
    content["trainer"]["init"]["loop"] = {"max_steps": STEPS + MORE_STEPS}
    yaml_file.write_text(yaml.safe_dump(content, sort_keys=False))
    checkpoint = folder / "first" / f"checkpoint_{STEPS}.mdl"
    onward = [str(yaml_file), "--checkpoint", str(checkpoint)]
    more, more_losses = run(folder, "more", processes, onward)

    print(f"{options.model}: {size.parameters:,} parameters, {processes} processes, rows of {length} tokens")
    print(f"share of weights, gradients and moments {share / 1e9:.3f}, bound {bound / 1e9:.3f}; GB above imports")
    good = True
    for stage, reports in [(s, r) for r in (first, more) for s in r[0] if s != "floor"]:
        peaks = [report[stage] for report in reports]
        good &= max(peaks) <= bound
        print(f"{stage:9}" + "".join(f" {peak / 1e9:7.3f}" for peak in peaks))
    print("imports  " + "".join(f" {report['floor'] / 1e9:7.3f}" for report in first))
    for number in options.continued_by:
        _, found = run(folder, f"by_{number}", number, onward)
        good &= compare_losses(f"continued by {processes}", more_losses, f"by {number}", found)
    if options.alone:
        _, found = run(folder, "alone", 1, [str(yaml_file)])
        good &= compare_losses(f"of {processes}", losses + more_losses, "of one", found)
    return good


def compare_losses(name: str, losses: list[float], other_name: str, others: list[float]) -> bool:
    """Print the losses of two runs; whether they are equal within 1e-5."""
    difference = max(abs(a - b) for a, b in zip(losses, others, strict=True))
    print(f"losses, {name}: {losses}, {other_name}: {others}: at most {difference:.2g} apart")
    return difference <= 1e-5


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="jais-family-590m", help=f"of configs, or of {', '.join(SMALLER)}")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row; each process has one")
    parser.add_argument("--continued-by", type=int, nargs="+", default=[], metavar="N", help="numbers of processes")
    parser.add_argument("--alone", action="store_true", help="compare with one process, which needs all the memory")
    parser.add_argument("--folder", type=Path, help="where files go for a while; default: a temporary folder")
    parser.add_argument("--activations", type=float, default=ACTIVATIONS, help="bytes beside 1.3 shares")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measured(arguments.words, arguments.measure)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        good = compare(arguments, Path(folder))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
