"""Kill conversions and let them go on: `python tests/attacks/kills.py --count N --seed S`; exit status 1 if bad.

Each trial starts a conversion in a process of its own, kills it (SIGKILL) once or several times, each time at a moment
drawn anew, and then lets it run to its end. Moments are of three kinds: after a time, at a number of bytes read, and
before the n-th call that changes a directory or flushes a file. After each kill, whatever stands under a final name
must be byte for byte what an undisturbed conversion makes; and so must everything at the end, with nothing left over.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

from checkpoint_convert.convert import convert_to_cerebras, convert_to_hf
from checkpoint_convert.llamacpp.convert import convert_to_gguf

# The calls between which a conversion's state on the disk changes.
STEPS = ("mkdir", "rename", "replace", "link", "fsync", "unlink", "rmdir", "open", "ftruncate")


@dataclass(frozen=True)
class Moment:
    """When a conversion is killed: "after" so many seconds, "at" a share of its bytes, or "before" a system call."""

    kind: str
    value: float


def convert(direction: str, source: Path, output: Path, progress: Callable = lambda done, total: None) -> None:
    """One conversion of the direction "to-hf", "to-cerebras" or "to-gguf"."""
    if direction == "to-hf":
        convert_to_hf(source, output, max_shard_size=200_000, progress=progress)
    elif direction == "to-gguf":
        convert_to_gguf(source, output, type_="q8_0", tokenizer=source.with_name("tokenizer"), progress=progress)
    else:
        convert_to_cerebras(source, output, progress=progress)


def run_killed(direction: str, source: Path, output: Path, moment: Moment | None) -> bool:
    """Convert in a child process that dies at the moment; whether it was killed. Errors of the child are raised.

    One error is none: that the output already exists, when it was there before.
    """
    there = output.exists()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _arm(moment)
            done = 0

            def progress(nbytes: int, total: int) -> None:
                nonlocal done
                done += nbytes
                if moment is not None and moment.kind == "at" and done >= moment.value * total:
                    os.kill(os.getpid(), signal.SIGKILL)

            convert(direction, source, output, progress)
            status = 0
        except BaseException as error:
            if there and "already exists" in str(error):
                os._exit(0)
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(status)
    if moment is not None and moment.kind == "after":
        time.sleep(moment.value)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the conversion failed"
    return False


def _arm(moment: Moment | None) -> None:
    """Make the n-th system call of those that matter the last thing that this process tries."""
    if moment is None or moment.kind != "before":
        return
    left = int(moment.value)

    def armed(function: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, armed(getattr(os, name)))


def steps_of(direction: str, source: Path, output: Path) -> int:
    """How many of the calls of STEPS a conversion makes."""
    with ExitStack() as patched:
        calls = [patched.enter_context(patch.object(os, name, wraps=getattr(os, name))) for name in STEPS]
        convert(direction, source, output)
        return sum(call.call_count for call in calls)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, hidden ones too: relative name -> bytes."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def trial(direction: str, source: Path, expected: dict[str, bytes], output: str, moments: list[Moment]) -> str:
    """Kill a conversion at the moments, one run after the other, and let it end; "" or what went wrong."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        target = directory / output
        for moment in moments:
            if target.exists() and not any(directory.glob(".*")):  # it ended before it could be killed
                break
            run_killed(direction, source, target, moment)
            visible = {path: data for path, data in contents(directory).items() if not path.startswith(".")}
            for path, data in visible.items():
                if expected.get(path) != data:
                    return f"after {moment}: {path} is there and wrong"
        if not target.exists() or any(directory.glob(".*")):
            run_killed(direction, source, target, None)
        if contents(directory) != expected or any(directory.glob(".*")):
            return f"{moments}: the result is another one"
    return ""


def subjects(directory: Path) -> list[tuple[str, Path, dict[str, bytes], str]]:
    """For each direction: its name, the input, the files an undisturbed conversion makes, the name of the output."""
    from tests.chat_tokenizers import write_tokenizer
    from tests.checkpoint_convert.examples import jais_section, random_model, state_of, write_checkpoint

    section = jais_section(num_hidden_layers=6, hidden_size=96, filter_size=256, vocab_size=1000)
    checkpoint = write_checkpoint(directory / "c.mdl", section, state_of(random_model(section)))
    write_tokenizer("jais", directory / "tokenizer")
    found = []
    for direction, output in (("to-hf", "release"), ("to-cerebras", "back.mdl"), ("to-gguf", "model.gguf")):
        source = found[0][1].parent / "made-to-hf" / "release" if direction == "to-cerebras" else checkpoint
        made = directory / f"made-{direction}"
        made.mkdir()
        run_killed(direction, source, made / output, None)
        found.append((direction, source, contents(made), output))
    return found


def draw_moments(draw: random.Random, seconds: float, calls: int) -> list[Moment]:
    """One to four moments."""
    kinds = {"after": lambda: draw.uniform(0, seconds), "at": draw.random, "before": lambda: draw.randrange(calls)}
    return [Moment(kind, kinds[kind]()) for kind in draw.choices(list(kinds), k=draw.choice((1, 1, 1, 2, 3, 4)))]


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="trials, as many in each direction")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    directory = Path(tempfile.mkdtemp())
    outcomes: Counter[str] = Counter()
    kills = 0
    try:
        every = subjects(directory)
        begun = time.monotonic()
        for direction, source, _, output in every:
            run_killed(direction, source, directory / f"timed-{direction}", None) if output == "release" else None
        seconds = time.monotonic() - begun
        steps = {
            direction: steps_of(direction, source, directory / f"counted{output}")
            for direction, source, _, output in every
        }
        for number in range(arguments.count):
            direction, source, expected, output = every[number % len(every)]
            moments = draw_moments(draw, seconds, steps[direction])
            kills += len(moments)
            wrong = trial(direction, source, expected, output, moments)
            outcomes["bad" if wrong else "continued to the same bytes"] += 1
            if wrong:
                print(f"trial {number}, {direction}: {wrong}")
    finally:
        shutil.rmtree(directory)
    print(f"{arguments.count} trials, {kills} kills: {dict(outcomes)}")
    sys.exit(1 if outcomes["bad"] else 0)


if __name__ == "__main__":
    main()
