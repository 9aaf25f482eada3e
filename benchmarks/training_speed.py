"""Training speed on the CPU: the reference path, the Model Zoo and transformers on two models, in one run.

Every contender trains the Llama of training_speed.yaml, or the Jais model of the same sizes (ALiBi, LayerNorm, biases),
with AdamW and clipping, each in a process of its own. transformers' closest to Jais is MPT: ALiBi, and as many FLOPs,
but no biases and GELU for SwiGLU. A step reads 2,048 tokens, or one row of the length; packed rows are documents of 300
to 700 tokens. Rounds alternate between the contenders so that a busy machine slows all alike, and the fastest step
counts. The limit is the rate of a 2048³ matrix product on the same cores, measured in the same rounds: the faster of
PyTorch's own (MKL in float32) and of oneDNN's.

    python benchmarks/training_speed.py [--modelzoo-python PATH] [--lengths 512 2048] [--only jais llama]

`--modelzoo-python` is a Python that has the Model Zoo 2.10 and its cerebras_pytorch; without it those rows are absent.
The Model Zoo's attention and MPT's keep every pair of tokens of every layer, which at 8,192 tokens is more memory than
24 GiB: they are measured up to 4,096, and there without most of the others (`--without`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.training_work import Work, flops_of_forward, packed_rows, plain_rows, token_batch, training_step

ROOT = Path(__file__).parent.parent
CONFIG = Path(__file__).with_suffix(".yaml")
TOKENS = 2048  # of a step, or one row
LONGEST, LONGEST_WITH_PAIRS = 16384, 4096  # tokens of a row
OURS = ("ours, float32", "ours, bfloat16")
PAIRS = ("Model Zoo", "MPT")
CONTENDERS = {
    "jais": (*OURS, "ours, the Model Zoo's torch", "Model Zoo", "MPT"),
    "llama": (*OURS, "ours, the Model Zoo's torch", "Model Zoo", "transformers"),
}
MATRIX = "matrix product"


def works(lengths: list[int]) -> list[Work]:
    found = []
    for length in lengths:
        rows = max(1, TOKENS // length)
        found.append(plain_rows(rows, length))
        if length >= TOKENS:
            found.append(packed_rows(rows, length))
    return found


def section(kind: str) -> dict:
    import yaml

    s = yaml.safe_load(CONFIG.read_text())["trainer"]["init"]["model"] | {"max_position_embeddings": LONGEST}
    if kind == "jais":
        del s["rotary_dim"]
        s |= {"name": "jais", "position_embedding_type": "alibi", "norm_type": "layernorm", "use_ffn_bias": True}
        s |= {"use_projection_bias_in_attention": True, "use_ffn_bias_in_attention": True}
    return s


def batch_of(work: Work) -> dict:
    return token_batch(work, section("llama")["vocab_size"])


def flops_of_step(work: Work) -> float:
    return 3 * flops_of_forward(config_of("llama"), work)


def config_of(kind: str):
    from cerebras_jais.model.config import DecoderConfig

    return DecoderConfig.from_section(section(kind))


def reference(kind: str, precision: str) -> Callable:
    import torch

    from cerebras_jais.model.decoder import LanguageModel

    return training_step(LanguageModel(config_of(kind)), "cpu", torch.bfloat16 if precision == "bfloat16" else None)


def modelzoo(kind: str) -> Callable:
    import cerebras.pytorch as cstorch
    import torch
    from cerebras.modelzoo.common.optim_utils import configure_param_groups

    if kind == "jais":
        from cerebras.modelzoo.models.nlp.jais.model import JAISModel as Model
        from cerebras.modelzoo.models.nlp.jais.model import JAISModelConfig as Config
    else:
        from cerebras.modelzoo.models.nlp.llama.model import LlamaModel as Model
        from cerebras.modelzoo.models.nlp.llama.model import LlamaModelConfig as Config

    cstorch.backend("CPU")
    cstorch.amp.enable_mixed_precision(False)
    model = Model(Config(**section(kind)))
    settings = {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "correct_bias": True}
    optimizer = cstorch.optim.AdamW(configure_param_groups(model, dict(settings)), lr=1e-4, **settings)

    def step(batch: dict) -> None:
        optimizer.zero_grad()
        model(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def transformers(kind: str) -> Callable:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MptConfig, MptForCausalLM

    s = section(kind)
    if kind == "jais":
        model = MptForCausalLM(
            MptConfig(
                vocab_size=s["vocab_size"],
                d_model=s["hidden_size"],
                n_layers=s["num_hidden_layers"],
                n_heads=s["num_heads"],
                expansion_ratio=4,
                max_seq_len=LONGEST_WITH_PAIRS,
                use_cache=False,
            )
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=s["vocab_size"],
                hidden_size=s["hidden_size"],
                intermediate_size=s["filter_size"],
                num_hidden_layers=s["num_hidden_layers"],
                num_attention_heads=s["num_heads"],
                max_position_embeddings=LONGEST,
                tie_word_embeddings=True,
                use_cache=False,
            )
        )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(batch: dict) -> None:
        optimizer.zero_grad()
        ids = batch["input_ids"].long()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def contender(kind: str, name: str) -> Callable:
    if name.startswith("ours"):
        return reference(kind, "bfloat16" if "bfloat16" in name else "float32")
    return modelzoo(kind) if name == "Model Zoo" else transformers(kind)


def runs(kind: str, name: str, work: Work) -> bool:
    """Whether a contender can do this work. The Model Zoo's Llama takes packed rows of one length alone."""
    if name in PAIRS and work.length > LONGEST_WITH_PAIRS:
        return False
    return not (work.packed and (name in ("MPT", "transformers") or (kind, name) == ("llama", "Model Zoo")))


def matrix_rates() -> dict[str, float]:
    """FLOP/s of a 2048³ product by type and library."""
    import torch

    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        products = {"PyTorch's": lambda a=a, b=b: a @ b}
        if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            products["oneDNN's"] = lambda a=a, b=b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        for library, product in products.items():
            seconds[f"{str(dtype).removeprefix('torch.')}, {library}"] = min(timed(product) for _ in range(4))
    return {name: 2 * 2048**3 / value for name, value in seconds.items()}


def timed(step: Callable) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def serve(kind: str, name: str, lengths: list[int]) -> None:
    """For every line read, the number of a work, do it and print the fastest step in seconds."""
    import torch

    torch.manual_seed(0)
    if name == MATRIX:
        matrix_rates()
    else:
        step, batches = contender(kind, name), {}
        step(batch_of(plain_rows(1, 512)))
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        if name == MATRIX:
            print(json.dumps(matrix_rates()), flush=True)
            continue
        work = works(lengths)[int(line)]
        batch = batches.setdefault(work, batch_of(work))
        times = [timed(lambda: step(batch)) for _ in range(3 if work.length < TOKENS else 1)]  # noqa: B023
        print(json.dumps(min(times)), flush=True)


def start(python: str, kind: str, name: str, lengths: list[int]) -> subprocess.Popen:
    command = [python, __file__, "--serve", kind, name, "--lengths", *map(str, lengths)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)


def answer(process: subprocess.Popen):
    """The next JSON line of a worker, past whatever else it prints."""
    for line in process.stdout:
        try:
            return json.loads(line)
        except ValueError:
            continue
    raise SystemExit(f"a contender failed; to see why, run: {' '.join(process.args)} < /dev/null")


def ask(process: subprocess.Popen, line: str):
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return answer(process)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modelzoo-python", help="a Python that has the Model Zoo")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048], help="tokens of a row")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="the models")
    parser.add_argument("--without", nargs="+", default=[], help="contenders to leave out, such as MPT")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve, options.lengths)
        return
    matrix = start(sys.executable, "llama", MATRIX, options.lengths)
    machine = answer(matrix)
    processes, versions = {}, {}
    for kind in options.only:  # one after another: warming up side by side would take minutes
        for name in CONTENDERS[kind]:
            if name in options.without or ("Model Zoo" in name and not options.modelzoo_python):
                continue
            python = options.modelzoo_python if "Model Zoo" in name else sys.executable
            processes[kind, name] = start(python, kind, name, options.lengths)
            versions[kind, name] = answer(processes[kind, name])["torch"]
            print(f"{kind}: {name} is ready", file=sys.stderr)
    rates: dict[str, float] = {}
    seconds: dict[tuple[str, str, Work], float] = {}
    for _ in range(options.rounds):
        for number, work in enumerate(works(options.lengths)):
            for library, rate in ask(matrix, "0").items():
                rates[library] = max(rate, rates.get(library, 0.0))
            for (kind, name), process in processes.items():
                if runs(kind, name, work):
                    took = ask(process, str(number))
                    seconds[kind, name, work] = min(took, seconds.get((kind, name, work), took))
    for process in (matrix, *processes.values()):
        process.stdin.close()
        process.wait()
    report(machine, rates, versions, seconds)


def report(
    machine: dict, rates: dict[str, float], versions: dict[tuple[str, str], str], seconds: dict[tuple, float]
) -> None:
    print(f"{machine['threads']} threads; matrix rates, GFLOP/s: ", end="")
    print(", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items()))
    for work in dict.fromkeys(work for *_, work in seconds):
        print(f"\n{work.name}: {flops_of_step(work) / 1e9:.0f} GFLOP a step")
        columns = f"{'s/step':>8}{'tokens/s':>10}{'of matrix rate':>16}{'of our float32':>16}{'of our llama':>14}"
        print(f"{'':<36}{'torch':<14}{columns}")
        for (kind, name), version in versions.items():
            took = seconds.get((kind, name, work))
            if took is None:
                continue
            precision = "bfloat16" if "bfloat16" in name else "float32"
            limit = max(rate for library, rate in rates.items() if library.startswith(precision))
            ours = seconds.get((kind, OURS[0], work))
            llama = seconds.get(("llama", name, work)) if name.startswith("ours") else None
            print(
                f"{f'{kind}: {name}':<36}{version:<14}{took:>8.3f}{work.tokens / took:>10.0f}"
                f"{flops_of_step(work) / took / limit:>16.0%}{ours / took if ours else float('nan'):>15.2f}x"
                + (f"{llama / took:>13.2f}x" if llama else "")
            )


if __name__ == "__main__":
    main()
