"""Stop `fit` at random moments and let it go on: `python tests/attacks/fit_kills.py --count N --seed S --jobs J`.

Each trial runs the command in a process of its own and stops it once or several times, by SIGKILL, SIGTERM or SIGINT,
at moments drawn anew: after a time, or before the n-th call that changes a file. Then the same command runs to its end.
What is in the folder must then be what a run never stopped leaves: the same checkpoints byte for byte, losses.csv
without its times, the index, the curve, the scalars of TensorBoard, and no other file. After SIGTERM and SIGINT no
temporary file may be left, and the status is 143 or 130. With `--state FILE` the program goes on where it was stopped.
Exit status 1 on a bad outcome.
"""

import argparse
import csv
import hashlib
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    # One thread: a process that has none beside its first can be copied (fork) at any time.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

# Loaded once, here, for all the processes.
import torch
import torch._dynamo  # a model without storage has it loaded
import torch.utils.tensorboard
import yaml

from cerebras_jais.commandline import status_of
from cerebras_jais.commands.fit import fit
from cerebras_jais.errors import UNFORESEEN
from cerebras_jais.train import loop, progress  # noqa: F401
from tests.cerebras_jais.train.examples import JAIS, LLAMA, trainer_section, write_data

# The calls between which the state on the disk changes.
STEPS = ("link", "rename", "replace", "fsync", "unlink", "open", "pwrite")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def cases(data: Path) -> dict[str, list[dict]]:
    """For each case its trainers; the data lie in `data`/plain and `data`/packed."""

    def trainer(model=JAIS, kind="plain", **init):
        section = trainer_section(data / kind, model)
        section["init"] |= {"loop": {"max_steps": 11, "eval_frequency": 4}, "model_dir": "run"}
        section["init"] |= {"logging": {"log_steps": 2}, "loggers": []}
        section["init"] |= init
        section["fit"]["train_dataloader"]["use_vsl"] = section["fit"]["val_dataloader"]["use_vsl"] = kind == "packed"
        return section

    frozen = {**LLAMA, "name": "jais_adapted", "frozen_parameters": [r"transformer_decoder\."]}
    second = {**LLAMA, "name": "jais_adapted"}
    weights_only = [{"LoadCheckpointStates": {"load_checkpoint_states": "model"}}]
    return {
        "fp32": [trainer()],
        "bf16": [trainer(LLAMA, precision={"fp16_type": "bfloat16"})],
        "phases": [
            trainer(loop={"max_steps": 5, "eval_frequency": 2}, checkpoint={"steps": 2}),
            trainer(
                loop={"num_steps": 6, "eval_frequency": 3},
                checkpoint={"steps": 2, "save_initial_checkpoint": True},
                callbacks=[{"KeepNCheckpoints": {"n": 2}}],
            ),
        ],
        "packed": [trainer(LLAMA, "packed", loop={"max_steps": 10, "eval_frequency": 5, "grad_accum_steps": 2})],
        "frozen": [
            trainer(frozen, loop={"max_steps": 4, "eval_frequency": 4}, model_dir="run/1", checkpoint={"steps": 2}),
            trainer(second, loop={"max_steps": 6, "eval_frequency": 1.0}, model_dir="run/2", callbacks=weights_only),
        ],
        "dropout-keep": [
            trainer(
                {**JAIS, "dropout_rate": 0.1, "attention_dropout_rate": 0.1},
                checkpoint={"steps": 2, "save_initial_checkpoint": True},
                callbacks=[{"KeepNCheckpoints": {"n": 2}}],
            )
        ],
        "epochs": [trainer(loop={"num_epochs": 2, "eval_frequency": 5}, checkpoint={"steps": 3})],
    }


def run(yaml_file: Path, folder: Path, stop: dict | None) -> int:
    """Run `fit` in a child process that is stopped so; its status as a shell has it. What it says goes to a file."""
    child = os.fork()
    if child == 0:
        status = UNFORESEEN
        try:
            with (folder.parent / "said.txt").open("a") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            _arm(stop)
            words = [str(yaml_file), "--model-dir", str(folder)]
            status = status_of("cerebras-jais", lambda: fit.main(words, standalone_mode=False))
        finally:
            sys.stdout.flush()
            os._exit(status)
    if stop is not None and "after" in stop:
        for seconds in stop["after"]:
            time.sleep(seconds)
            os.kill(child, stop["signal"])
    _, status = os.waitpid(child, 0)
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _arm(stop: dict | None) -> None:
    """Make this process send itself the signal before the n-th call of those that matter."""
    if stop is None or "before" not in stop:
        return
    left = [stop["before"]]

    def armed(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), stop["signal"])
            return function(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, armed(getattr(os, name)))


def draw_stop(draw: random.Random, seconds: float) -> dict:
    """How and when to stop a run that takes so many seconds."""
    signum = draw.choice(SIGNALS)
    if draw.random() < 0.5:
        return {"signal": signum, "before": draw.randrange(1, 120)}
    after = [draw.uniform(0, seconds)]
    if signum != signal.SIGKILL and draw.random() < 0.3:
        after.append(draw.uniform(0, 0.1))  # and a second one
    return {"signal": signum, "after": after}


def without_time(name: str) -> str:
    """The name of a checkpoint without the time of its writing."""
    return re.sub(r"_\d{8}_\d{6}", "_TIME", name)


def contents(folder: Path) -> dict:
    """What a run has left, in a form that is equal for equal runs."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict = {}
    for path in sorted(folder.rglob("*")):
        name = without_time(str(path.relative_to(folder)))
        if path.is_dir() or path.name.startswith("events.out"):
            continue
        if path.name == "losses.csv":
            with path.open(newline="") as file:
                found[name] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
        elif path.name == "checkpoints_index.yaml":
            listed = yaml.safe_load(path.read_text())
            found[name] = [without_time(os.path.relpath(one, folder)) for one in listed]
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for events in sorted(folder.rglob("events")):
        merged = EventAccumulator(str(events), size_guidance={"scalars": 0}).Reload()
        for tag in merged.Tags()["scalars"]:
            if tag != "tokens_per_second":
                scalars = [(scalar.step, scalar.value) for scalar in merged.Scalars(tag)]
                found[f"{events.relative_to(folder)}/{tag}"] = scalars
    return found


def difference(found: dict, expected: dict) -> str:
    """ "" for equal contents, else the first thing that is not."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            is_now, was = str(found.get(name, "missing"))[:300], str(expected.get(name, "not there"))[:300]
            return f"{name}: {is_now} instead of {was}"
    return ""


def trial(yaml_file: Path, expected: dict, stops: list[dict], work: Path) -> str:
    """Stop a run so, time after time, and let it end; "" or what went wrong."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    folder = work / "run"
    signals_alone = True  # what a SIGKILL leaves is removed by a run that comes to it
    for stop in stops:
        status = run(yaml_file, folder, stop)
        signals_alone = signals_alone and stop["signal"] != signal.SIGKILL
        if status not in (0, 128 + stop["signal"]):
            return f"status {status} after {stop}: {(work / 'said.txt').read_text()[-600:]}"
        left = [path for path in folder.rglob("*") if re.search(r"\.tmp$|partial", path.name)]
        if left and signals_alone:
            return f"{left[0].name} is left after {stop}"
    for again in ("first", "second") if len(stops) == 1 else ("first",):  # the second time nothing is left to do
        status = run(yaml_file, folder, None)
        if status != 0:
            return f"status {status} of the {again} run after {stops}: {(work / 'said.txt').read_text()[-600:]}"
        wrong = difference(contents(folder), expected)
        if wrong:
            return f"after {stops}, {again} run: {wrong}"
    return ""


def work_through(numbers: list[int], seed: int, subjects: list[tuple], work: Path, state: Path) -> None:
    """Do the trials of these numbers; a line of JSON is added to the state file for each."""
    for number in numbers:
        draw = random.Random(f"{seed} {number}")
        name, yaml_file, expected, seconds = subjects[number % len(subjects)]
        stops = [draw_stop(draw, seconds) for _ in range(draw.choice((1, 1, 2, 3)))]
        try:
            wrong = trial(yaml_file, expected, stops, work)
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        line = {"seed": seed, "number": number, "case": name, "stops": len(stops), "wrong": wrong}
        line["signals"] = [signal.Signals(stop["signal"]).name for stop in stops]
        with state.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if wrong:
            print(f"trial {number}, {name}: {wrong}", flush=True)


def prepare(directory: Path) -> list[tuple]:
    """For each case its name, its YAML, what a run never stopped leaves, and how many seconds that took."""
    for kind in ("plain", "packed"):
        write_data(directory / "data" / kind / "train", samples=36, packed=kind == "packed")
        write_data(directory / "data" / kind / "held_out", samples=10, seed=1, packed=kind == "packed")
    subjects = []
    for name, trainers in cases(directory / "data").items():
        yaml_file = directory / f"{name}.yaml"
        sections = [{"trainer": trainer} for trainer in trainers]
        yaml_file.write_text(yaml.safe_dump({"trainer": sections if len(sections) > 1 else trainers[0]}))
        whole = directory / "whole" / name / "run"
        whole.parent.mkdir(parents=True)
        begun = time.monotonic()
        status = run(yaml_file, whole, None)
        assert status == 0, (whole.parent / "said.txt").read_text()
        subjects.append((name, yaml_file, contents(whole), time.monotonic() - begun))
    return subjects


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="trials, the cases in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="trials at the same time")
    parser.add_argument("--state", type=Path, help="file of the trials done, to go on from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it says each time what a restart hides
    directory = Path(tempfile.mkdtemp())
    progress.draw_curve([{"step": 1, "loss": 1.0}], directory / "first.png")  # reads the fonts
    state: Path = arguments.state or directory / "state.jsonl"
    try:
        subjects = prepare(directory)
        state.touch()
        done = {line["number"] for line in map(json.loads, state.open()) if line["seed"] == arguments.seed}
        left = [number for number in range(arguments.count) if number not in done]
        workers = []
        for job in range(arguments.jobs):
            worker = os.fork()
            if worker == 0:
                try:
                    work_through(left[job :: arguments.jobs], arguments.seed, subjects, directory / f"{job}", state)
                finally:
                    sys.stdout.flush()
                    os._exit(0)
            workers.append(worker)
        for worker in workers:
            os.waitpid(worker, 0)
        lines = [line for line in map(json.loads, state.open()) if line["seed"] == arguments.seed]
    finally:
        shutil.rmtree(directory)
    lines = [line for line in lines if line["number"] < arguments.count]
    verdicts = Counter("bad" if line["wrong"] else "equal" for line in lines)
    signals = Counter(name for line in lines for name in line["signals"])
    print(f"{len(lines)} trials, {sum(signals.values())} kills {dict(signals)}: {dict(verdicts)}")
    sys.exit(0 if verdicts["equal"] == arguments.count else 1)


if __name__ == "__main__":
    main()
