"""How fast the engine generates: against the rate of the memory, training's forward pass, transformers and llama.cpp.

    python benchmarks/generation.py --directory DIR --llama-python PYTHON_WITH_XLLAMACPP

Jais models of random weights: the demo's (`configs/tiny/jais.yaml`), one of 30 million parameters in 12 layers, and
jais-family-590m. Each is written as a release, and opened by `open_engine` with each kind of weights. An answer to a
prompt of 32 tokens has `--tokens` tokens; its rate is that of the tokens after the first, and the best of `--rounds`
answers counts, one at a time and 8 as a batch. Prefill is a prompt of 512 tokens; training's forward pass is that of
`LanguageModel` on the same tokens, without the head. "Of the memory's rate" is the bytes of all matrices that a token
reads (of the embedding one row) times the tokens a second, over the bytes a second of the sum of 1 GiB of float32,
measured just before with as many threads. transformers runs its `generate` with the release in this process, and
llama.cpp a GGUF file of it, made by `checkpoint-convert to-gguf`, in the server of xllamacpp in the given Python; the
server's own times count.

    python benchmarks/generation.py --profile --models 30m

Where the time of one token goes, the 65th of an answer, in float32 and bfloat16: the parts of the fastest of 100 steps
a round; the time in which their bytes are read at the memory's rate; and the parts of a model of as many layers and
heads, each head 8 numbers wide, which is the time of starting operations and threads. The timers are in all three.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
PROMPT, PREFILL, BATCH, AT = 32, 512, 8, 64
BITS = {"float32": 32, "bfloat16": 16, "int4": 5}
GGUF = {"float32": "f32", "bfloat16": "f16", "int4": "q4_0"}
# Changes to the config of a file of `configs`.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": ("tiny/jais.yaml", {"max_position_embeddings": 1024}),
    "30m": (
        "tiny/jais.yaml",
        {
            "max_position_embeddings": 1024,
            "hidden_size": 384,
            "num_hidden_layers": 12,
            "num_heads": 6,
            "filter_size": 1024,
            "vocab_size": 24576,
        },
    ),
    "590m": ("jais-family-590m/pretrain.yaml", {}),
}


def section_of(name: str) -> dict[str, Any]:
    import yaml

    file, changes = MODELS[name]
    trainer = yaml.safe_load((ROOT / "configs" / file).read_text())["trainer"]
    init = (trainer[0]["trainer"] if isinstance(trainer, list) else trainer)["init"]
    return {**init["model"], **changes}


def write_release(name: str, directory: Path) -> Path:
    """A release of random weights, float32."""
    import torch

    from cerebras_jais.model.alibi import alibi_slopes
    from cerebras_jais.model.config import DecoderConfig
    from cerebras_jais.model.tensors import tensors
    from checkpoint_convert.convert import convert_to_hf
    from tests.chat_tokenizers import write_tokenizer
    from tests.checkpoint_convert.examples import write_checkpoint

    directory.mkdir(parents=True, exist_ok=True)
    section = section_of(name)
    config = DecoderConfig.from_section(section)
    state: dict[str, Any] = {}
    for tensor in tensors(config):
        if tensor.same_as is not None:
            state[tensor.name] = state[tensor.same_as]
        elif tensor.name.endswith("slopes"):
            state[tensor.name] = torch.tensor(alibi_slopes(config.num_heads))[:, None].numpy()
        else:
            drawn = torch.empty(tensor.shape).normal_(std=0.02, generator=torch.Generator().manual_seed(len(state)))
            state[tensor.name] = (drawn + (1 if "norm" in tensor.name and len(tensor.shape) == 1 else 0)).numpy()
    checkpoint = write_checkpoint(directory / f"{name}.mdl", section, state)
    del state
    convert_to_hf(checkpoint, directory / name, tokenizer=write_tokenizer("jais", directory / f"{name}-tokenizer"))
    checkpoint.unlink()
    return directory / name


def numbers_read(config: Any) -> int:
    """Of the matrices and vectors that one token reads whole."""
    from cerebras_jais.model.tensors import tensors

    total = sum(tensor.size for tensor in tensors(config) if tensor.same_as is None)
    return total - (0 if config.share_embedding_weights else config.vocab_size * config.hidden_size)


def fastest(call: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some calls."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def memory_rate(reads: int = 10) -> float:
    """Bytes a second of reading 1 GiB, the fastest of some times."""
    import torch

    array = torch.ones(2**28)
    array.sum()
    return 4 * array.numel() / fastest(array.sum, reads)


def decoding(times: list[float]) -> float:
    """Seconds a token after the first, of the times at which the tokens came."""
    return (times[-1] - times[0]) / (len(times) - 1)


def measure_ours(release: Path, weights: str, tokens: int, rounds: int) -> dict[str, float]:
    """Tokens a second: alone, as a batch of 8, of a prompt; and the memory's rate, before each answer alone."""
    import torch

    from cerebras_jais.chat.engine import open_engine
    from cerebras_jais.chat.sampling import Sampling

    engine = open_engine(release, weights=weights)
    draw = torch.Generator().manual_seed(0)

    def prompt(length: int) -> list[int]:  # another each time, so that no prefix is used again
        return torch.randint(engine.vocabulary, (length,), generator=draw).tolist()

    def answers(count: int) -> float:
        sampling = Sampling(max_new_tokens=tokens, min_new_tokens=tokens)
        stream = engine.stream_batch([prompt(PROMPT) for _ in range(count)], [sampling] * count)
        return decoding([time.perf_counter() for _ in stream])

    def read() -> None:
        engine.complete([prompt(PREFILL)], [Sampling(max_new_tokens=1)])

    rates, seconds = zip(*((memory_rate(), answers(1)) for _ in range(rounds)), strict=True)
    found = {"one": 1 / min(seconds), "memory": max(rates)}
    found["batch"] = BATCH / min(answers(BATCH) for _ in range(rounds))
    found["prefill"] = PREFILL / fastest(read, rounds)
    return found


def measure_forward(release: Path, rounds: int) -> float:
    """Tokens a second of the forward pass that training uses, without the head."""
    import torch

    from checkpoint_convert.load import load_release

    model = load_release(release)
    ids = torch.randint(model.config.vocab_size, (1, PREFILL))
    with torch.inference_mode():
        return PREFILL / fastest(lambda: model.model(ids), rounds)


def measure_transformers(release: Path, tokens: int, rounds: int) -> dict[str, float]:
    """Tokens a second of transformers' `generate`, float32."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    class Times(BaseStreamer):
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    model = AutoModelForCausalLM.from_pretrained(release, trust_remote_code=True, dtype=torch.float32).eval()

    def generate(length: int, new: int) -> list[float]:
        ids, streamer = torch.randint(model.config.vocab_size, (1, length)), Times()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=0,
            streamer=streamer,
        )
        return streamer.times[1:]  # the first is the prompt

    found = {"one": 1 / min(decoding(generate(PROMPT, tokens)) for _ in range(rounds))}
    found["prefill"] = PREFILL / fastest(lambda: generate(PREFILL, 1), rounds)
    return found


def llama_work(gguf: Path, threads: int, tokens: int, rounds: int) -> None:
    """In the Python with xllamacpp: print tokens a second as JSON, in the last line."""
    import random

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx, params.n_parallel, params.port = BATCH * 1024, BATCH, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server, draw = xllamacpp.Server(params), random.Random(0)

    def timings(length: int, new: int) -> dict[str, float]:
        ids = [draw.randrange(5, 300) for _ in range(length)]
        body = {"prompt": ids, "n_predict": new, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
        request = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["timings"]

    def together() -> float:
        with ThreadPoolExecutor(BATCH) as pool:
            done = list(pool.map(lambda _: timings(PROMPT, tokens), range(BATCH)))
        return BATCH * tokens / max(each["predicted_ms"] for each in done) * 1000

    found = {"one": max(timings(PROMPT, tokens)["predicted_per_second"] for _ in range(rounds))}
    found["batch"] = max(together() for _ in range(rounds))
    found["prefill"] = max(timings(PREFILL, 1)["prompt_per_second"] for _ in range(rounds))
    print(json.dumps(found), flush=True)
    os._exit(0)  # the server's threads do not end by themselves


def measure_llama(python: str, release: Path, weights: str, given: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of llama.cpp with a GGUF file of the release."""
    gguf, environment = release.with_suffix(".gguf"), {**os.environ, "PYTHONPATH": str(ROOT)}
    convert = [sys.executable, "-m", "checkpoint_convert.cli", "to-gguf", release, "--type", GGUF[weights]]
    subprocess.run([*map(str, convert), "--output", str(gguf)], check=True, env=environment, stdout=subprocess.DEVNULL)
    command = [python, __file__, "--llama-work", gguf, "--threads", given.threads]
    command += ["--tokens", given.tokens, "--rounds", given.rounds]
    try:
        done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"llama.cpp failed:\n{error.stderr[-2000:]}") from error
    finally:
        gguf.unlink()
    return json.loads(done.stdout.splitlines()[-1])


def timed_step(forward: Any) -> Callable[[], dict[str, float]]:
    """A step behind 64 tokens that says how many seconds each of its parts took; the model keeps the timers."""
    import torch
    import torch.nn.functional as F

    spent: dict[str, float] = defaultdict(float)
    cache = forward.new_cache(1, 2 * AT)

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def apply(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments, **options)
            spent[part] += time.perf_counter() - start
            return result

        return apply

    @torch.inference_mode()
    def step() -> dict[str, float]:
        spent.clear()
        with patch.object(F, attention.__name__, timed("attention", attention)):
            start = time.perf_counter()
            forward.step([0], cache, [0], AT)
            seconds = time.perf_counter() - start
        return {**spent, "between them": seconds - sum(spent.values()), "the token": seconds}

    attention = F.scaled_dot_product_attention
    for number, layer in enumerate(forward._layers):
        parts = {part.name: "norms" if "norm" in part.name else part.name for part in fields(layer)}
        forward._layers[number] = replace(
            layer, **{name: timed(part, getattr(layer, name)) for name, part in parts.items()}
        )
    forward._last_norm, forward._head = timed("norms", forward._last_norm), timed("head", forward._head)
    return step


def print_profile(name: str, weights: Any, rounds: int) -> None:
    """The parts of a step, beside the time that their bytes and their start take."""
    from cerebras_jais.chat import weights as module
    from cerebras_jais.chat.forward import Forward
    from cerebras_jais.model.config import DecoderConfig
    from cerebras_jais.model.decoder import LanguageModel

    def model(section: dict[str, Any]) -> Any:
        return Forward(LanguageModel(DecoderConfig.from_section(section)), weights)

    config = DecoderConfig.from_section(section_of(name))
    step = timed_step(model(section_of(name)))
    sizes = dict.fromkeys(("hidden_size", "filter_size", "vocab_size"), 8 * config.num_heads)
    # The narrow model's matrices are multiplied as the smallest of the other's, by as many threads.
    limits = {limit: 0 for limit in ("_SMALL", "_LARGE") if config.hidden_size**2 >= getattr(module, limit)}
    with patch.multiple(module, _NARROWEST=1, **limits):
        narrow = timed_step(model({**section_of(name), **sizes}))
    rate, taken, starting = 0.0, step(), narrow()
    for _ in range(10 * rounds):
        rate = max(rate, memory_rate(1))
        taken = min(taken, *(step() for _ in range(10)), key=lambda parts: parts["the token"])
        starting = min(starting, *(narrow() for _ in range(10)), key=lambda parts: parts["the token"])
    hidden, kv, layers = config.hidden_size, config.num_kv_groups * config.head_dim, config.num_hidden_layers
    numbers = {
        "qkv": layers * hidden * (hidden + 2 * kv),
        "out": layers * hidden * hidden,
        "up_gate": layers * hidden * 2 * config.filter_size,
        "down": layers * hidden * config.filter_size,
        "head": hidden * config.vocab_size,
    }
    read = {part: count * BITS[weights] / 8 for part, count in numbers.items()}
    read["attention"] = 4 * layers * 2 * kv * (AT + 1)
    read["the token"] = sum(read.values())
    print(f"\n{name}, {weights}: the memory's rate is {rate / 1e9:.1f} GB/s")
    print(f"{'ms':<14}{'taken':>8}{'to read':>9}{'to start':>10}")
    for part in sorted(taken, key=lambda part: (part == "the token", -taken[part])):
        print(f"{part:<14}{taken[part] * 1e3:>8.3f}{read.get(part, 0) / rate * 1e3:>9.3f}{starting[part] * 1e3:>10.3f}")


def rows_of(name: str, given: argparse.Namespace) -> Iterator[tuple[str, dict[str, float], float | None]]:
    """What each contestant reached with a model, and the bytes that it reads for a token where that is known."""
    from cerebras_jais.model.config import DecoderConfig

    release = write_release(name, given.directory)
    read = numbers_read(DecoderConfig.from_section(section_of(name)))
    yield "training's forward pass, float32", {"prefill": measure_forward(release, given.rounds)}, None
    for weights, bits in BITS.items():
        gc.collect()
        yield f"engine, {weights}", measure_ours(release, weights, given.tokens, given.rounds), read * bits / 8
        if given.llama_python:
            found = measure_llama(given.llama_python, release, weights, given)
            size = read * {"float32": 4, "bfloat16": 2, "int4": 4.5 / 8}[weights]
            yield f"llama.cpp, {GGUF[weights]}", found, size
    gc.collect()
    yield "transformers, float32", measure_transformers(release, given.tokens, given.rounds), 4 * read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--llama-python", metavar="PYTHON")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--llama-work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.llama_work:
        llama_work(given.llama_work, given.threads, given.tokens, given.rounds)
        return
    if given.directory is None and not given.profile:
        parser.error("give --directory, for the models")
    sys.path[0] = str(ROOT)
    import torch

    torch.set_num_threads(given.threads)
    for name in given.models:
        if given.profile:
            for weights in ("float32", "bfloat16"):
                print_profile(name, weights, given.rounds)
            continue
        rate = 0.0
        print(f"\n{name}: {given.threads} threads, torch {torch.__version__}")
        print(f"{'':<34}{'tokens/s':>10}{'GB/s':>8}{'of memory':>11}{'batch of 8':>12}{'is':>7}{'prefill of 512':>16}")
        for row, found, size in rows_of(name, given):
            one, batch, rate = found.get("one"), found.get("batch"), found.get("memory", rate)
            line = f"{row:<34}" + (f"{one:>10.1f}" if one else " " * 10)
            line += f"{rate / 1e9:>8.1f}" if "memory" in found else " " * 8
            line += f"{one * size / rate:>11.0%}" if one and size else " " * 11
            line += f"{batch:>12.1f}{batch / one:>6.1f}x" if one and batch else " " * 19
            print(f"{line}{found['prefill']:>16.0f}", flush=True)


if __name__ == "__main__":
    main()
