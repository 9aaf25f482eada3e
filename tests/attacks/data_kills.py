"""Kill `data build` at random moments and let it go on: `python tests/attacks/data_kills.py --count N --seed S`.

Each trial starts the command in a session of its own, sends its first process SIGKILL after a time drawn anew, up to
three times, and waits 2 seconds: no process of the session may be left. Then the same command runs to its end, and must
leave the bytes of a run never killed. Exit status 1 on a bad outcome.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

from tests.cerebras_jais.data.recipe.runs import (
    build,
    command,
    contents,
    environment,
    settings,
    write_corpus,
    write_tokenizer,
    write_yaml,
)

PATIENCE = 2.0  # seconds in which all workers must have ended


def processes_of(session: int) -> list[int]:
    """The processes of a session, by /proc; one that has ended and waits for its parent is none."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(of) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def killed(words: list[str], seconds: float, patience: float = PATIENCE) -> str:
    """Start a command and kill its first process; "" or what is left of it."""
    process = subprocess.Popen(
        words, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
        return ""  # it was done before
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until = time.monotonic() + patience
    while left := processes_of(process.pid):
        if time.monotonic() > until:
            return f"processes {left} are left {patience} s after the kill"
        time.sleep(0.05)
    return ""


def trial(work: Path, number: int, draw: random.Random, seconds: float, expected: dict[str, str]) -> str:
    """Kill a run, and let it end; "" or what went wrong."""
    output = work / f"killed-{number}"
    words = command("data", "build", work / "run.yaml", "--output", output, "--workers", draw.choice((1, 2, 3)))
    for _ in range(draw.randint(1, 3)):
        if wrong := killed(words, draw.uniform(0, seconds)):
            return wrong
    done = build(work / "run.yaml", "--output", output)
    if done.returncode:
        return f"status {done.returncode} of the run that goes on: {done.stderr[-600:]}"
    found = contents(output)
    different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    shutil.rmtree(output)
    return f"{different[0]} differs from a run never killed" if different else ""


def main() -> int:
    """Carry the trials out; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="data_kills_") as folder:
        work = Path(folder)
        corpus, tokenizer = write_corpus(work / "corpus", copies=30), write_tokenizer(work / "tokenizer")
        write_yaml(work / "run.yaml", settings(corpus, tokenizer, work / "whole", workers=2))
        began = time.monotonic()
        done = build(work / "run.yaml")
        assert done.returncode == 0, done.stderr
        seconds, expected = time.monotonic() - began, contents(work / "whole")
        draw = random.Random(options.seed)
        bad = 0
        for number in range(options.count):
            wrong = trial(work, number, draw, seconds, expected)
            bad += bool(wrong)
            print(f"{number}: {wrong or 'same bytes'}", flush=True)
    print(f"{options.count} trials, {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
