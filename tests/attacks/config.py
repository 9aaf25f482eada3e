"""Change trainer YAML, check it, train it: `python tests/attacks/config.py --count N --seed S`; exit status 1 if bad.

Each key of three valid files is given each of WRONG, or is removed. `config check` looks at the result; where it finds
nothing, `fit` trains two steps. A verdict is "refused" (by `config check`, one line each that names the file),
"trained", "noted" (`fit` refuses what a note of `config check` names: data, a start checkpoint, memory), or one of BAD:
"late" (`fit` refuses what `config check` called good), "crash" (any other exception) or "hang" (over 10 seconds).
"""

import argparse
import contextlib
import copy
import io
import json
import os
import random
import resource
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

import click
import torch
import yaml

from cerebras_jais.cli import cli
from cerebras_jais.errors import UserError
from cerebras_jais.train import progress
from tests.attacks.mutations import Hang, time_limit
from tests.cerebras_jais.train.examples import JAIS, LLAMA, trainer_section, write_data

BAD = ("late", "crash", "hang")
MEMORY = 16 << 30  # bytes of address space
REMOVED = object()
NAN, INFINITY = float("nan"), float("inf")
WRONG = (REMOVED, None, True, -1, 0, 1.5, 7, 10**9, 10**30, NAN, INFINITY, -INFINITY, 1e-300)
WRONG += ("text", "", "0", [], {}, [1], {"text": 1})
Path_ = tuple[str | int, ...]


def valid_files() -> dict[str, Any]:
    """The YAML files to change, as nested mappings; data lies in train, packed and held_out."""
    here = Path()
    jais = trainer_section(here, {**JAIS, "mup_base_filter_size": 32.0, "loss_scaling": "batch_size"})
    jais["init"]["model"] |= {"loss_weight": 1 / 32, "dropout_rate": 0.1}
    jais["init"] |= {
        "model_dir": "run",
        "loop": {"max_steps": 13, "eval_frequency": 0.5, "eval_steps": 1, "grad_accum_steps": 2},
        "checkpoint": {"steps": 5, "checkpoint_name": "at_{step}.mdl", "checkpoint_root": "kept"},
        "callbacks": [{"KeepNCheckpoints": {"n": 2}}, {"CheckLoss": {}}, {"ScopedTrainFlags": {}}],
    }
    spread = {"name": "truncated_normal", "mean": 0.0, "std": 0.02, "a": -0.04, "b": 0.04}
    jais["init"]["model"] |= {"initializer": spread, "embedding_initializer": copy.deepcopy(spread)}

    llama = trainer_section(here, {**LLAMA, "name": "llama"})
    llama["init"] |= {
        "model_dir": "run",
        "optimizer": {
            "AdamW": {
                "learning_rate": 0.001,
                "betas": [0.9, 0.99],
                "params": [{"params": ["*norm*"], "tag": "norms"}],
                "adjust_learning_rate": {"embedding": 0.5},
            }
        },
        "schedulers": [
            {"ConstantLR": {"learning_rate": 0.01, "param_group_tags": ["norms"]}},
            {"ConstantLR": {"learning_rate": 0.02, "param_group_tags": [None]}},
        ],
        "precision": {
            "enabled": True,
            "fp16_type": "bfloat16",
            "loss_scaling_factor": 1.0,
            "max_gradient_value": 1.0,
            "steps_per_increase": 100,
        },
        "loop": {"num_epochs": 1, "steps_per_epoch": 2},
        "backend": {"backend_type": "CPU", "cluster_config": {"num_csx": 1, "job_labels": ["a=b"]}},
    }
    llama["fit"]["train_dataloader"] |= {
        "drop_last": False,
        "pad_last": True,
        "num_workers": 0,
        "data_subset": "0.0-0.5",
    }

    first = trainer_section(here, {**LLAMA, "name": "jais_adapted", "frozen_parameters": ["transformer_decoder"]})
    part = {"data_dir": "packed", "weight": 2}
    first["init"] |= {"model_dir": "run", "loop": {"max_steps": 1}, "checkpoint": {"steps": 1}}
    first["init"]["schedulers"] = [{"LinearLR": _line(1)}]
    first["fit"]["train_dataloader"] = {
        "data_processor": "GptHDF5MapDataProcessor",
        "mixture": [part, {"data_dir": ["packed"], "weight": 1.0}],
        "batch_size": 4,
        "use_vsl": True,
    }
    first["fit"].pop("val_dataloader")
    second = copy.deepcopy(first)
    second["init"]["model"].pop("frozen_parameters")
    second["init"] |= {"loop": {"max_steps": 2}, "schedulers": [{"CosineDecayLR": _line(1)}]}
    second["init"]["callbacks"] = [{"LoadCheckpointStates": {"load_checkpoint_states": "model,global_step"}}]
    return {
        "jais": {"trainer": jais},
        "llama": {"trainer": llama},
        "stages": {"trainer": [{"trainer": first}, {"trainer": second}]},
    }


def _line(steps: int) -> dict[str, Any]:
    return {"initial_learning_rate": 0.01, "end_learning_rate": 0.001, "total_iters": steps}


def paths_in(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The path of every key and item at any depth."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from paths_in(item, (*path, key))


def changed(file: Any, path: Path_, value: Any) -> Any:
    """A copy of a file with another value at a path."""
    file = copy.deepcopy(file)
    *parents, last = path
    target = file
    for key in parents:
        target = target[key]
    if value is REMOVED:
        del target[last]
    else:
        target[last] = value
    return file


def verdict_on(file: Any, data: Path) -> tuple[str, str]:
    """Check and train one file in a folder of its own; the verdict, and what was said."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in data.iterdir():
            (folder / part.name).symlink_to(part)
        (folder / "run.yaml").write_text(yaml.safe_dump(file, sort_keys=False), encoding="utf-8")
        with contextlib.chdir(folder):
            try:
                with time_limit():
                    found = json.loads(_run("config", "check", "run.yaml", "--json"))[0]
                if found["problems"]:
                    lines = found["problems"]
                    one_line_each = all("\n" not in line and line.startswith("run.yaml") for line in lines)
                    return ("refused" if one_line_each else "crash"), "\n".join(lines)
                with time_limit():
                    _run("fit", "run.yaml", "--backend", "cpu", "--max-steps", "2")
                return "trained", ""
            except (UserError, click.ClickException) as error:
                noted = any(_names(note, str(error)) for note in found["notes"])
                return ("noted" if noted else "late"), f"{error}; notes: {found['notes']}"
            except Hang:
                return "hang", traceback.format_exc()
            except (Exception, SystemExit):
                return "crash", traceback.format_exc()


def _names(note: str, error: str) -> bool:
    """Whether a note of `config check` speaks of what `fit` refuses."""
    if note.startswith("training takes"):
        return "training takes" in error
    named = note.removeprefix("data not found, so not checked: ").split(" and ")[0].split(": ")[-1]
    return named in error


def _run(*arguments: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        cli.main(list(arguments), standalone_mode=False)
    return said.getvalue()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=500, help="cases; all there are if fewer")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    progress.draw_curve = lambda rows, path: None  # takes longer than two steps
    files = valid_files()
    cases = [(name, path, value) for name, file in files.items() for path in paths_in(file) for value in WRONG]
    random.Random(options.seed).shuffle(cases)
    verdicts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        for part, rows, packed in (("train", 64, False), ("held_out", 10, False), ("packed", 64, True)):
            write_data(data / part, samples=rows, packed=packed)
        for name, file in files.items():
            verdict, said = verdict_on(file, data)
            assert verdict == "trained", f"{name}: {said}"
        for number, (name, path, value) in enumerate(cases[: options.count]):
            verdict, said = verdict_on(changed(files[name], path, value), data)
            verdicts[verdict] += 1
            if verdict in BAD or os.environ.get("SAY"):
                shown = "removed" if value is REMOVED else repr(value)
                print(f"{verdict} {number}: {name} {path} = {shown}\n{said}", flush=True)
    print(", ".join(f"{verdict} {count}" for verdict, count in sorted(verdicts.items())))
    sys.exit(int(any(verdicts[bad] for bad in BAD)))


if __name__ == "__main__":
    main()
