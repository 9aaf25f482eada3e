"""How fast checkpoints convert, and in how much memory: against a copy of the same bytes and the Model Zoo's converter.

    python benchmarks/conversion.py --model jais-family-590m --modelzoo-python PATH --directory DIR
    python benchmarks/conversion.py --memory --directory DIR

Speed: a checkpoint of the model's published sizes in float32, random numbers in it. Each contestant runs alone, in a
process of its own, its input out of the page cache where the system lets it be dropped, or, with `--warm`, in it, as
after a download or a training step; a run ends when its output is flushed to the disk (the Model Zoo's converter does
not flush: the time of `sync` after it is added, and also shown apart). The copy reads and writes blocks of 16 MB and
flushes; "the disk alone" reads the input and then writes as much as the output, both past the page cache, which is
what the disk allows a conversion that has to read its input from it. The Model Zoo's converter runs with `cs-2.9`,
since its automatic names fail for checkpoints of 2.10.

Memory: checkpoints of zeros (holes in the file, but for ALiBi's slopes), converted both ways and to GGUF; the peak
resident size above that of the same program when it has imported everything and refused its input, and the most disk
in use.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import numpy as np

from cerebras_jais.checkpoint import LazyTensor, create_empty_checkpoint
from cerebras_jais.model.alibi import alibi_slopes
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.convert import SpecialTokens, to_config_json
from checkpoint_convert.configs.trainer_yaml import trainer_params, yaml_text
from checkpoint_convert.formats.json_files import write_json
from checkpoint_convert.formats.safetensors import create_shards, file_tensors, plan_shards
from checkpoint_convert.formats.tensors import TensorHeader
from checkpoint_convert.mapping.rules import expected_tensors, ties
from tests.chat_tokenizers import write_tokenizer
from tests.checkpoint_convert.examples import PUBLISHED

BLOCK = 16 << 20
OURS = [sys.executable, "-m", "checkpoint_convert.cli"]
# Zeros of 2.6 GB and 27 GB.
MEMORY_MODELS = ("jais-family-590m", "jais-family-6p7b")


@dataclass(frozen=True)
class Run:
    """What one process took."""

    seconds: float
    """Until its output was flushed."""
    unflushed: float
    """Until it ended."""
    peak: int
    """Bytes resident at most."""
    disk: int
    """Bytes on the disk in its directory at most, where it was watched."""


def write_checkpoint(path: Path, name: str, *, zeros: bool) -> None:
    """A checkpoint of a published model's sizes in float32, with its YAML beside it."""
    section = dict(PUBLISHED[name][0])
    config = DecoderConfig.from_section(section)
    tied = ties(config, "cerebras")
    shapes = expected_tensors(config, "cerebras")
    lazy = {key: LazyTensor(shape, "float32") for key, shape in shapes.items() if key not in tied}
    params = trainer_params(section, path.name)
    state = {
        "model": OrderedDict((f"model.{key}", lazy[tied.get(key, key)]) for key in shapes),
        "__metadata__": [{"version": "2.10.0", "model_name": "JAISModel", "params": params}],
    }
    offsets = create_empty_checkpoint(path, state, complete=True)
    draw = np.random.default_rng(0)
    with open(path, "r+b") as file:
        for key, offset in offsets.items():
            file.seek(offset)
            if key.endswith("slopes"):
                file.write(np.array(alibi_slopes(config.num_heads), "<f4").tobytes())
                continue
            left = 0 if zeros else int(np.prod(shapes[key.removeprefix("model.model.")]))
            while left:
                count = min(left, BLOCK // 4)
                file.write(draw.standard_normal(count, dtype=np.float32).data)
                left -= count
        file.flush()
        os.fsync(file.fileno())
    path.with_suffix(".yaml").write_text(yaml_text(params, []), encoding="utf-8")


def drop_caches() -> bool:
    """Write out what is dirty and empty the page cache; whether the system lets that be done."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def warm_up(path: Path) -> None:
    """Have a file, or those of a directory, in the page cache, and nothing left to be written."""
    os.sync()
    for file in path.iterdir() if path.is_dir() else [path]:
        with open(file, "rb", buffering=0) as opened:
            while opened.read(BLOCK):
                pass


def measured(command: list[str], *, watched: Path | None = None) -> Run:
    """Run a command to its end and flush what it left."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": sys.path[0]},
    )
    most = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.2):
            most = max(most, disk_use(watched)) if watched else 0

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stdout is not None
    output = process.stdout.read()
    failed = process.wait()
    ended.set()
    unflushed = time.perf_counter() - begun
    os.sync()
    seconds = time.perf_counter() - begun
    watcher.join()
    peak = int(output.split()[-1]) * 1024
    if failed:
        why = "killed, out of memory" if failed == 128 + signal.SIGKILL else output.decode()[-3000:]
        raise Failed(f"{' '.join(command)} failed after {seconds:.0f} s and {peak / 1e9:.1f} GB: {why}")
    return Run(seconds, unflushed, peak, most)


class Failed(SystemExit):
    """A contestant did not come to its end."""


def disk_use(directory: Path) -> int:
    """Bytes that the files below a directory take on the disk."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:  # it was moved meanwhile
            continue
    return total


# A process inherits the peak of the one that it was forked from, so a small one stands between.
LAUNCHER = """
import os, sys
with open("/proc/self/oom_score_adj", "w") as file:  # who runs out of memory is killed, nobody else
    file.write("1000")
child = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
print("\\n", usage.ru_maxrss, flush=True)
code = os.waitstatus_to_exitcode(status)
sys.exit(128 - code if code < 0 else code)
"""
FROM_RELEASE = ("copy of the release", "to Cerebras, ours", "to Cerebras, Model Zoo")
COPY = """
import os, sys
with open(sys.argv[1], "rb", buffering=0) as source, open(sys.argv[2], "wb", buffering=0) as target:
    while block := source.read(16 << 20):
        target.write(block)
    os.fsync(target.fileno())
"""


# What the disk itself does: a file read past the page cache and thrown away, and as many bytes written past it.
DISK = """
import mmap, os, sys
block = mmap.mmap(-1, 16 << 20)
size = os.path.getsize(sys.argv[1])
source = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
while os.readv(source, [block]):
    pass
target = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
for _ in range(int(sys.argv[3]) // len(block)):
    os.write(target, block)
os.fsync(target)
"""


def to_gguf(source: Path, tokenizer: Path, type_: str) -> list[str]:
    """The command without the output's name."""
    return [*OURS, "to-gguf", str(source), "--type", type_, "--tokenizer", str(tokenizer), "--output"]


def disk_command(source: Path, target: Path, written: int) -> list[str]:
    return [sys.executable, "-c", DISK, str(source), str(target), str(written)]


def copy_command(source: Path, target: Path) -> list[str]:
    return [sys.executable, "-c", COPY, str(source), str(target)]


def modelzoo_command(python: str, directory: Path, *, to_hf: bool, index: Path, config: Path) -> list[str]:
    formats = ["--src-fmt", "cs-2.9", "--tgt-fmt", "hf", "--export-safetensors"]
    if not to_hf:
        formats = ["--src-fmt", "hf", "--tgt-fmt", "cs-2.9"]
    module = [python, "-m", "cerebras.modelzoo.tools.convert_checkpoint", "convert", "--model", "jais"]
    return [*module, *formats, "--config", str(config), "--output-dir", str(directory), str(index)]


def remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def measure_speed(name: str, directory: Path, modelzoo: str | None, repeats: int, *, warm: bool) -> None:
    """Print the table of one model: seconds, rates and ratios, medians of the repeats."""
    source = directory / "source.mdl"
    print(f"writing {name} in float32 ...", file=sys.stderr)
    write_checkpoint(source, name, zeros=False)
    cache = "holding the input" if warm else "emptied before each" if drop_caches() else "as it was"
    copied, tokenizer = directory / "copy", write_tokenizer("jais", directory / "tokenizer")
    release, back, theirs = directory / "release", directory / "back.mdl", directory / "theirs"
    runs: dict[str, list[Run]] = {}

    failures: list[str] = []

    def contest(label: str, command: list[str], keep: bool = False, outputs: Callable[[], list[Path]] = list) -> None:
        drop_caches()
        if warm:
            warm_up(release if label in FROM_RELEASE else source)
        try:
            found = measured(command)
        except Failed as failure:
            if "Model Zoo" not in label:
                raise
            failures.append(f"{label}: {failure}")
        else:
            runs.setdefault(label, []).append(found)
            print(f"{label}: {found}", file=sys.stderr)
        if not keep:
            remove(outputs())

    for number in range(repeats):
        last = number == repeats - 1
        contest("copy of the checkpoint", copy_command(source, copied), outputs=lambda: [copied])
        to_hf = [*OURS, "to-hf", str(source), "--output", str(release), "--max-shard-size", "100GB"]
        contest("to Hugging Face, ours", to_hf, keep=True)
        (shard,) = release.glob("*.safetensors")
        contest("copy of the release", copy_command(shard, copied), outputs=lambda: [copied])
        to_cerebras = [*OURS, "to-cerebras", str(release), "--output", str(back)]
        contest(
            "to Cerebras, ours",
            to_cerebras,
            outputs=lambda: [back, back.with_suffix(".yaml"), directory / "back.manifest.json"],
        )
        if hasattr(os, "O_DIRECT"):
            command = disk_command(source, copied, shard.stat().st_size)
            contest("to Hugging Face, the disk alone", command, outputs=lambda: [copied])
            command = disk_command(shard, copied, source.stat().st_size)
            contest("to Cerebras, the disk alone", command, outputs=lambda: [copied])
        made = directory / "model.gguf"
        contest("to GGUF, ours", [*to_gguf(source, tokenizer, "f32"), str(made)], keep=True)
        gguf_bytes = made.stat().st_size
        remove([made])
        if hasattr(os, "O_DIRECT"):
            contest("to GGUF, the disk alone", disk_command(source, copied, gguf_bytes), outputs=lambda: [copied])
        if modelzoo:
            command = modelzoo_command(modelzoo, theirs, to_hf=True, index=source, config=source.with_suffix(".yaml"))
            contest("to Hugging Face, Model Zoo", command, outputs=lambda: [theirs])
            command = modelzoo_command(
                modelzoo,
                theirs,
                to_hf=False,
                index=release / "model.safetensors.index.json",
                config=release / "config.json",
            )
            contest("to Cerebras, Model Zoo", command, outputs=lambda: [theirs])
        if not last:
            remove([release])
    sizes = {"Cerebras": source.stat().st_size, "Hugging Face": shard.stat().st_size, "GGUF": gguf_bytes}
    remove([release, tokenizer, source, source.with_suffix(".yaml")])
    kinds = {"Cerebras": "a checkpoint", "Hugging Face": "a release", "GGUF": "a GGUF file"}
    listed = ", ".join(f"{sizes[side] / 1e9:.2f} GB as {kind}" for side, kind in kinds.items())
    print(f"\n{name}, float32: {listed}; {repeats} runs, medians; page cache {cache}")
    print("| run | seconds, flushed | seconds, not flushed | GB/s written | peak MB |")
    print("| --- | --- | --- | --- | --- |")
    middle = {label: statistics.median(run.seconds for run in found) for label, found in runs.items()}
    for label, found in runs.items():
        of = (
            "GGUF"
            if "GGUF" in label
            else "Cerebras"
            if "Cerebras" in label or "checkpoint" in label
            else "Hugging Face"
        )
        written = sizes[of]
        unflushed = statistics.median(run.unflushed for run in found)
        peak = max(run.peak for run in found)
        rate = written / middle[label] / 1e9
        print(f"| {label} | {middle[label]:.1f} | {unflushed:.1f} | {rate:.3f} | {peak / 1e6:.0f} |")
    for side, kind in (("Hugging Face", "release"), ("Cerebras", "checkpoint"), ("GGUF", "checkpoint")):
        ours = middle[f"to {side}, ours"]
        against = f"to {side}: {middle[f'copy of the {kind}'] / ours:.2f} of the rate of a copy"
        if f"to {side}, the disk alone" in middle:
            against += f", {middle[f'to {side}, the disk alone'] / ours:.2f} of what the disk allows"
        theirs_runs = runs.get(f"to {side}, Model Zoo")
        if theirs_runs:
            unflushed = statistics.median(run.unflushed for run in theirs_runs)
            against += f", {middle[f'to {side}, Model Zoo'] / ours:.1f} times the Model Zoo's converter"
            against += f" ({unflushed / ours:.1f} when only ours is flushed)"
        print(against)
    print("\n".join(failures), end="")


def write_release(directory: Path, name: str) -> None:
    """A release of zeros of a published model's sizes in float32."""
    section = dict(PUBLISHED[name][0])
    config = DecoderConfig.from_section(section)
    shapes = expected_tensors(config, "hugging_face")
    shards = plan_shards([TensorHeader(key, shape, "float32") for key, shape in shapes.items()], 5 * 10**9)
    directory.mkdir()
    create_shards(directory, shards)
    write_json(directory / "config.json", to_config_json(section, "float32", SpecialTokens(0, 0, 0)))
    for key, place in file_tensors(directory, shards).items():
        if key.endswith("slopes"):
            with open(place.path, "r+b") as file:
                file.seek(place.offset)
                file.write(np.array(alibi_slopes(config.num_heads), "<f4").tobytes())


def measure_memory(directory: Path) -> None:
    """Print peak memory above the import floor and peak disk above the output, for a small and a large checkpoint."""
    print("| model | direction | output GB | peak MB | above the imports, MB | disk above the output |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in MEMORY_MODELS:
        for direction in ("to Hugging Face", "to Cerebras", *(f"to GGUF, {type_}" for type_ in ("f32", "q8_0"))):
            work = directory / "work"
            work.mkdir()
            if direction == "to Hugging Face":
                source, output = directory / "source.mdl", work / "release"
                write_checkpoint(source, name, zeros=True)
                command = [*OURS, "to-hf", str(source), "--output", str(output)]
            elif "GGUF" in direction:
                source, output = directory / "source.mdl", work / "model.gguf"
                write_checkpoint(source, name, zeros=True)
                tokenizer = write_tokenizer("jais", directory / "tokenizer")
                command = [*to_gguf(source, tokenizer, direction.split()[-1]), str(output)]
            else:
                source, output = directory / "source", work / "back.mdl"
                write_release(source, name)
                command = [*OURS, "to-cerebras", str(source), "--output", str(output)]
            run = measured(command, watched=work)
            size = disk_use(output) if output.is_dir() else output.stat().st_blocks * 512
            above = max(run.disk, disk_use(work)) / size - 1
            over = (run.peak - import_floor()) / 1e6
            print(f"| {name} | {direction} | {size / 1e9:.1f} | {run.peak / 1e6:.0f} | {over:.0f} | {above:.2%} |")
            remove([work, source, source.with_suffix(".yaml"), *directory.glob("tokenizer")])


def import_floor() -> int:
    """Peak bytes of a process that has imported all that a conversion imports."""
    code = "import checkpoint_convert.llamacpp.convert, checkpoint_convert.cli, tqdm, h5py, yaml"
    return measured([sys.executable, "-c", code]).peak


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="jais-family-590m", choices=[name for name in PUBLISHED if "family" in name])
    parser.add_argument("--modelzoo-python", help="interpreter of an environment with the Model Zoo 2.10")
    parser.add_argument("--directory", type=Path, required=True, help="an empty directory with room for 5 copies")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="measure speed with the input in the page cache")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    if arguments.memory:
        measure_memory(arguments.directory)
    else:
        measure_speed(
            arguments.model, arguments.directory, arguments.modelzoo_python, arguments.repeats, warm=arguments.warm
        )


if __name__ == "__main__":
    main()
