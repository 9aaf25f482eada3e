"""Damage for files, and the verdict on a reader that was given them: what the fuzz programs of model files share.

A verdict is "refused" (the one error that the reader is to raise), "same" (the tensors of the undamaged file),
"confirmed" (others, and an independent library reads the same), or one of BAD: "wrong" (others, and the library does
not), "crash" (any other exception), "hang" (more than 10 seconds).
"""

import argparse
import json
import multiprocessing
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  (numpy knows "bfloat16" once it is imported)
import numpy as np
import torch

from checkpoint_convert.errors import ConversionError

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]  # element type, shape, bytes by name
Region = tuple[int, int]  # first byte and the byte after the last
BAD = ("wrong", "crash", "hang")
LIMIT = 10  # seconds of the processor
WAITING = 30
EXTREMES = (0, 1, -1, 2, 0x7F, 0x80, 0x7FFF, 0x8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, 1 << 62, 1 << 63, -2)


@dataclass(frozen=True)
class Subject:
    """What a fuzz program attacks.

    `cases` are directories of undamaged files; `mutate` damages a copy of one; `open_model` is the reader under test;
    `read_independently` reads the same directory with a library of others. `refusal` is what the reader raises when it
    refuses a file.
    """

    cases: tuple[Path, ...]
    mutate: Callable[[random.Random, Path], None]
    open_model: Callable[[Path], dict]
    read_independently: Callable[[Path], Tensors]
    refusal: type[Exception] = ConversionError


def from_torch(tensors: dict[str, torch.Tensor]) -> Tensors:
    """Tensors as torch has them, to compare with."""
    return {
        name: (
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, tensor in tensors.items()
    }


def from_reader(tensors: dict) -> Tensors:
    """Tensors as our readers give them, to compare with."""
    arrays = {name: tensor.read() for name, tensor in tensors.items()}
    return {name: (array.dtype.name, array.shape, np.asarray(array).tobytes()) for name, array in arrays.items()}


# ---- damage ---------------------------------------------------------------------------------------------------------


def mutate_bytes(draw: random.Random, data: bytes, structure: Iterable[Region]) -> bytes:
    """One to three damages, four in five of them inside the structure."""
    out = bytearray(data)
    regions = [region for region in structure if region[0] < region[1]]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        start, stop = draw.choice(regions) if regions and draw.random() < 0.8 else (0, len(out))
        stop = min(stop, len(out))
        if start >= stop:
            continue
        at = draw.randrange(start, stop)
        length = min(draw.choice((1, 2, 4, 8, 16, 100)), stop - at)
        match draw.randrange(9):
            case 0 | 1:
                for _ in range(draw.choice((1, 1, 2, 8))):
                    out[draw.randrange(start, stop)] ^= 1 << draw.randrange(8)
            case 2:
                out[at : at + length] = draw.choice((b"\0", b"\xff", b"9", b'"')) * length
            case 3:
                out[at : at + length] = draw.randbytes(length)
            case 4:
                width = draw.choice((1, 2, 4, 8))
                number = draw.choice(EXTREMES) % (1 << 8 * width)
                out[at : at + min(width, stop - at)] = number.to_bytes(width, "little")[: stop - at]
            case 5:
                del out[at : at + length]
            case 6:
                out[at:at] = draw.choice((draw.randbytes(length), bytes(length), bytes(out[at : at + length])))
            case 7:
                other = draw.randrange(start, stop)
                piece = bytes(out[other : other + length])
                out[at : at + len(piece)] = piece
            case 8:
                if draw.random() < 0.5:
                    del out[at:]
                else:
                    out += draw.choice((bytes(length), draw.randbytes(length), bytes(out[-length:])))
    return bytes(out)


VALUES = (
    *(
        "null",
        "true",
        '""',
        '"x"',
        "[]",
        "{}",
        "[0]",
        "1.5",
        "-1",
        "NaN",
        "1e999",
        "0",
        "[[]]",
        '"../x"',
        '"/etc/passwd"',
    ),
    *(str(number) for number in EXTREMES),
    "9" * 30,
    "9" * 5000,
    "[" * 2000,
)


def mutate_json(draw: random.Random, text: str, names: tuple[str, ...] = ()) -> str:
    """One damage to a JSON text: numbers to extremes; keys doubled, renamed or lost; values of another kind."""
    strings = [m.span() for m in re.finditer(r'"(?:[^"\\]|\\.)*"', text)]
    numbers = [m.span() for m in re.finditer(r"(?<!\d)\d{1,30}(?=[\],}])", text)]
    match draw.randrange(6):
        case 0 if numbers:
            start, stop = draw.choice(numbers)
            return text[:start] + draw.choice(VALUES) + text[stop:]
        case 1 if numbers:
            start, stop = draw.choice(numbers)
            return text[:start] + str(int(text[start:stop]) + draw.choice((-8, -4, -1, 1, 4, 8))) + text[stop:]
        case 2 if strings:
            start, stop = draw.choice(strings)
            return text[:start] + draw.choice((*VALUES, *map(json.dumps, names))) + text[stop:]
        case 3 if strings:
            start, stop = draw.choice(strings)
            other, end = draw.choice(strings)
            return text[:start] + text[other:end] + text[stop:]
        case 4:
            inside = [m.span() for m in re.finditer(r'"[^"]*":\s*(?:"[^"]*"|\{[^{}]*\}|\[[^\[\]]*\]),?', text)]
            if inside:
                start, stop = draw.choice(inside)
                piece = text[start:stop].rstrip(",") + ","
                return draw.choice((text[:start] + text[stop:], text[:start] + piece + text[start:]))
            return text + text
        case _:
            pieces = [m.span() for m in re.finditer(r"\[[^\[\]]*\]", text)] or [(0, len(text))]
            start, stop = draw.choice(pieces)
            return text[:start] + draw.choice(VALUES) + text[stop:]


def mutate_index(draw: random.Random, index: Path) -> None:
    """Damage an index of shards: as JSON, in its names, or as bytes; or exchange or lose the shards themselves."""
    shards = sorted(path for path in index.parent.iterdir() if path != index)
    kind = draw.randrange(10)
    if kind < 6:
        names = (
            "../" + shards[0].name,
            str(shards[0]),
            "./" + shards[0].name,
            "",
            ".",
            "..",
            "a\0b",
            *map(str, shards),
        )
        names += tuple(shard.name for shard in shards)
        index.write_text(mutate_json(draw, index.read_text(), names))
    elif kind < 8:
        data = index.read_bytes()
        index.write_bytes(mutate_bytes(draw, data, [(0, len(data))]))
    elif kind == 8:
        first, second = draw.sample(shards, 2)
        kept = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(kept)
    else:
        draw.choice(shards).unlink()


# ---- verdicts -------------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """Not an Exception, so that no reader takes it for an error of its own."""


@contextmanager
def time_limit():
    """Raise Hang in the block after LIMIT seconds of the processor, or WAITING times as many of the clock.

    Of the processor's time, since a busy machine is no hang; and of the clock, since a reader can wait for ever.
    """

    def stop(*_):
        raise Hang

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, LIMIT), signal.SIGALRM: (signal.ITIMER_REAL, WAITING * LIMIT)}
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _confirms(subject: Subject, directory: Path, found: Tensors) -> bool:
    """Whether the library reads the same; in a process of its own, because damaged files can crash libraries."""

    def answer(pipe) -> None:
        try:
            pipe.send(subject.read_independently(directory) == found)
        except BaseException:
            pipe.send(False)

    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=answer, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return ours.poll(LIMIT * WAITING) and ours.recv()
    except EOFError:
        return False
    finally:
        process.kill()
        process.join()


def judge(subject: Subject, directory: Path, original: Tensors) -> str:
    """The verdict on one damaged directory."""
    try:
        with time_limit():
            found = from_reader(subject.open_model(directory))
    except subject.refusal:
        return "refused"
    except Hang:
        return "hang"
    except BaseException:
        traceback.print_exc()
        return "crash"
    if found == original:
        return "same"
    return "confirmed" if _confirms(subject, directory, found) else "wrong"


def attack(subject: Subject, count: int, seed: int, keep: Path | None = None) -> Counter:
    """Verdicts on `count` damaged copies; those with a bad verdict are kept under `keep`."""
    originals = [from_reader(subject.open_model(case)) for case in subject.cases]
    verdicts: Counter = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz_") as scratch:
        for number in range(count):
            draw = random.Random(f"{seed} {number}")
            which = draw.randrange(len(subject.cases))
            directory = Path(scratch, "case")
            shutil.copytree(subject.cases[which], directory)
            subject.mutate(draw, directory)
            verdict = judge(subject, directory, originals[which])
            verdicts[verdict] += 1
            if verdict in BAD:
                print(f"{verdict}: seed {seed}, number {number}, from {subject.cases[which].name}", file=sys.stderr)
                if keep:
                    shutil.copytree(directory, keep / f"{verdict}_{seed}_{number}", dirs_exist_ok=True)
            shutil.rmtree(directory)
    return verdicts


def main(make_subject: Callable[[Path], Subject]) -> None:
    """The command line of a fuzz program: `--count N --seed S [--keep DIR]`; exit status 1 on a bad verdict."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--count", type=int, default=1000, help="damaged files to try")
    arguments.add_argument("--seed", type=int, default=0, help="the same seed damages the same bytes")
    arguments.add_argument("--keep", type=Path, help="directory for the files that were read wrongly")
    options = arguments.parse_args()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + (2 << 30)  # a reader that asks for more than 2 GB is a crash
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    with tempfile.TemporaryDirectory(prefix="fuzz_") as directory:
        verdicts = attack(make_subject(Path(directory)), options.count, options.seed, options.keep)
    print(", ".join(f"{verdict} {verdicts[verdict]:,}" for verdict in ("refused", "same", "confirmed", *BAD)))
    sys.exit(any(verdicts[verdict] for verdict in BAD))
