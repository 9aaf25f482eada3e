"""The programs as the commands in the documents call them, made short: training stops after a few steps.

What a whole run would leave is there afterwards under its own name, so a command that names another checkpoint fails.
Run as `python -m tests.stranger PROGRAM ARGUMENTS...`; not a test itself.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS = 3
MODULES = {"cerebras-jais": "cerebras_jais.cli", "checkpoint-convert": "checkpoint_convert.cli"}


def main(program, *words):
    if program == "make":
        assert words == ("demo",), "only `make demo` is run"
        status = run([ROOT / "runs" / "demo.py", "--max-steps", STEPS, "--output", "demo_output"])
        for name in ("jais", "adapted"):
            finish(f"tiny/{name}", ["--model-dir", f"demo_output/{name}"])
        return status
    module = ["-m", MODULES[program]]
    if words[0] != "fit" or "--dry-run" in words:
        status = run([*module, *words])
        return 0 if status == 1 and "diff" in words[:2] else status  # that two differ is no failure
    status = run([*module, *words, "--max-steps", STEPS])
    finish(words[1], list(words))
    return status


def run(words):
    return subprocess.run([sys.executable, *map(str, words)], check=False).returncode


def finish(config, words):
    """Give the last checkpoint the name that it has after the whole run."""
    from cerebras_jais.catalog.reader import read_trainer_yaml
    from cerebras_jais.launch.phases import plan_phases  # slow to import, and most commands train nothing

    def option(name):
        return words[words.index(name) + 1] if name in words else None

    steps = option("--max-steps")
    (phase,) = plan_phases(
        read_trainer_yaml(config), model_dir=option("--model-dir"), max_steps=int(steps) if steps else None
    )
    os.rename(phase.folder / f"checkpoint_{STEPS}.mdl", phase.folder / f"checkpoint_{phase.ends}.mdl")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
