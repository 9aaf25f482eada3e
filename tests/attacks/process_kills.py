"""Kill processes of a divided run: `python tests/attacks/process_kills.py --count N --seed S [--model NAME]`.

Each trial trains on four processes (gloo, FSDP). It kills one of them, or all and their launcher, by SIGKILL, after a
time drawn anew or as soon as a checkpoint is being written, and continues with one, two or four processes; some trials
kill twice. After each kill the run must have ended with at most one line of error, and each checkpoint must be whole.
At the end the losses must be those of a run never stopped, and nothing may be left over. `--model` is one of
benchmarks/processes.py in place of the tiny one. With `--state FILE` the program goes on where it was stopped. Exit
status 1 on a bad outcome.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
import yaml

from benchmarks import processes as measured
from cerebras_jais.checkpoint import StoredTensor, open_checkpoint
from tests import tolerances
from tests.cerebras_jais.train.examples import JAIS, trainer_section, write_data

PROCESSES = 4
ENDS_WITHIN = 300  # seconds from a kill to the end of the launcher


def prepare(folder: Path, model: str | None) -> Path:
    """The YAML of the run, and its data."""
    if model is None:
        write_data(folder / "data")
        section = trainer_section(folder, JAIS)
        section["init"] |= {"loop": {"max_steps": 12}, "checkpoint": {"steps": 2}, "loggers": []}
        section["fit"] = {"train_dataloader": section["fit"]["train_dataloader"] | {"data_dir": str(folder / "data")}}
        content = {"trainer": section}
    else:
        content = measured.trainer(model, PROCESSES, 512, folder / "data")
        init = content["trainer"]["init"]
        init |= {"loop": {"max_steps": 4}, "checkpoint": {"steps": 1}}
        init["callbacks"] = [{"KeepNCheckpoints": {"n": 1}}]  # they may be large
        measured.write_rows(folder / "data", PROCESSES * 4, 512, init["model"]["vocab_size"])
    yaml_file = folder / "run.yaml"
    yaml_file.write_text(yaml.safe_dump(content, sort_keys=False))
    return yaml_file


def start(yaml_file: Path, folder: Path, processes: int, said: Path) -> subprocess.Popen:
    """Begin or continue the run in a folder."""
    words = ["-m", "cerebras_jais.cli", "fit", str(yaml_file), "--model-dir", str(folder)]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        words = [*launcher, *words, "--sharding", "fsdp"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with said.open("w") as file:
        return subprocess.Popen([sys.executable, *words], stdout=file, stderr=file, env=environment)


def kill(launcher: subprocess.Popen, which: str, draw: random.Random) -> None:
    """Kill one process of the run or all of them and the launcher."""
    listed = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    found = [int(number) for number in listed.read_text().split()] if listed.exists() else []
    doomed = [*found, launcher.pid] if which == "all" or not found else [draw.choice(found)]
    for number in doomed:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def problem_of(folder: Path) -> str:
    """What is wrong with the checkpoints of a folder, or nothing."""
    for path in folder.glob("*.mdl"):
        with open_checkpoint(path) as checkpoint:
            for leaf in checkpoint.tensors.values():
                if isinstance(leaf, StoredTensor) and not np.isfinite(leaf.read()).all():
                    return f"{path.name}: {leaf.key} is damaged"
    return ""


def losses_of(folder: Path) -> list[float]:
    with (folder / "losses.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def trial(yaml_file: Path, work: Path, expected: list[float], seconds: float, draw: random.Random) -> tuple[str, list]:
    """Kill a run once or twice and let it end; what went wrong, or nothing, and what was done."""
    folder, said, done = work / "run", work / "said.txt", []
    for _ in range(draw.choice((1, 1, 1, 2))):
        processes = PROCESSES if not done else draw.choice((2, PROCESSES))
        which, moment = draw.choice(("one", "all")), draw.choice(("time", "writing"))
        launcher = start(yaml_file, folder, processes, said)
        end = time.monotonic() + (draw.uniform(0, seconds) if moment == "time" else 10 * seconds)
        skipped = draw.randrange(4) if moment == "writing" else 0  # checkpoints before that
        kept = {path.name for path in folder.glob("*.mdl")}
        while launcher.poll() is None and time.monotonic() < end:
            new = {path.name for path in folder.glob("*.mdl")} - kept
            if moment == "writing" and len(new) >= skipped and any(folder.glob(".checkpoint_*.tmp")):
                break
            time.sleep(0.002)
        if launcher.poll() is None:
            kill(launcher, which, draw)
        done.append(f"{which} of {processes}, {moment}")
        try:
            launcher.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            kill(launcher, "all", draw)
            return f"it hung after {done[-1]}", done
        lines = [line for line in said.read_text().splitlines() if line.startswith("error: ")]
        if len(lines) > 1:
            return f"after {done[-1]} it said {lines}", done
        wrong = problem_of(folder)
        if wrong:
            return f"after {done[-1]}: {wrong}", done
    processes = draw.choice((1, 2, PROCESSES))
    done.append(f"continued by {processes}")
    if start(yaml_file, folder, processes, said).wait() != 0:
        return f"it did not continue: {[line for line in said.read_text().splitlines() if 'rror' in line]}", done
    found = losses_of(folder)
    if len(found) != len(expected) or np.abs(np.subtract(found, expected)).max() > tolerances.LOSS_ACROSS_PROCESSES:
        return f"its losses are {found}", done
    left = [path.name for path in folder.glob(".*")]
    return (f"{left} are left" if left else problem_of(folder)), done


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="jais-family-590m, 80m and so on; default: a tiny one")
    parser.add_argument("--state", type=Path, help="file of the trials done, to go on from")
    parser.add_argument("--folder", type=Path, help="where files go for a while; default: a temporary folder")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=arguments.folder))
    state = arguments.state or directory / "state.jsonl"
    state.touch()
    try:
        yaml_file = prepare(directory, arguments.model)
        begun = time.monotonic()
        whole = directory / "whole"
        status = start(yaml_file, whole, PROCESSES, directory / "said.txt").wait()
        assert status == 0, (directory / "said.txt").read_text()
        seconds, expected = time.monotonic() - begun, losses_of(whole)
        shutil.rmtree(whole)
        done = {line["number"] for line in map(json.loads, state.open()) if line["seed"] == arguments.seed}
        for number in sorted(set(range(arguments.count)) - done):
            draw = random.Random(f"{arguments.seed}-{number}")
            work = directory / str(number)
            work.mkdir()
            wrong, kills = trial(yaml_file, work, expected, seconds, draw)
            with state.open("a") as file:
                print(json.dumps({"seed": arguments.seed, "number": number, "done": kills, "wrong": wrong}), file=file)
            print(f"trial {number}: {'; '.join(kills)}: {wrong or 'good'}", flush=True)
            shutil.rmtree(work)
        lines = [line for line in map(json.loads, state.open()) if line["seed"] == arguments.seed]
    finally:
        shutil.rmtree(directory)
    bad = [line for line in lines if line["wrong"]]
    print(f"{len(lines)} trials, {sum(len(line['done']) - 1 for line in lines)} kills, {len(bad)} bad")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
