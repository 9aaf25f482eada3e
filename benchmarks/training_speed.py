"""Training speed on the CPU: the reference path, the Model Zoo and transformers' Llama on one model, in one run.

Every contender trains the model of training_speed.yaml, batch 4 of 512 tokens, with AdamW, each in a process of its
own; rounds alternate between the contenders so that a busy machine slows all alike, and the fastest step counts. The
limit is the rate of a large float32 matrix product on the same cores, measured in the same rounds.

    python benchmarks/training_speed.py [--modelzoo-python PATH] [--rounds 3]

`--modelzoo-python` is a Python that has the Model Zoo 2.10 and its cerebras_pytorch; without it that row is absent.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIG = Path(__file__).with_suffix(".yaml")
BATCH, LENGTH, STEPS = 4, 512, 5


def section() -> dict:
    import yaml

    return yaml.safe_load(CONFIG.read_text())["trainer"]["init"]["model"]


def token_batch() -> dict:
    import torch

    ids = torch.randint(0, section()["vocab_size"], (BATCH, LENGTH + 1), dtype=torch.int32)
    row = {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}
    return row | {"attention_mask": torch.ones_like(row["input_ids"])}


def flops_per_step() -> float:
    """Of the matrix products, forward and backward (3 x 2 per weight and token), with causal attention at half."""
    s = section()
    h, f, n, v = s["hidden_size"], s["filter_size"], s["num_hidden_layers"], s["vocab_size"]
    weights = n * (4 * h * h + 3 * h * f) + v * h
    attention = n * 2 * h * LENGTH / 2
    return 6 * (weights + attention) * BATCH * LENGTH


def reference(precision: str):
    import torch

    from cerebras_jais.model.config import DecoderConfig
    from cerebras_jais.model.decoder import LanguageModel
    from cerebras_jais.model.precision import forward_precision, step_precision
    from cerebras_jais.optimizer.adamw import build_adamw
    from cerebras_jais.optimizer.groups import named_tensors, parameter_groups

    model = LanguageModel(DecoderConfig.from_section(section()))
    groups = parameter_groups(model, model.config, weight_decay=0.1)
    optimizer = build_adamw(
        groups, named_tensors(model), learning_rate=1e-4, betas=(0.9, 0.95), eps=1e-8, correct_bias=True
    )
    dtype = torch.bfloat16 if precision == "bf16" else None

    def step(batch):
        optimizer.zero_grad()
        with step_precision("cpu", dtype):
            with forward_precision("cpu", dtype):
                loss = model(batch)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def modelzoo():
    import cerebras.pytorch as cstorch
    import torch
    from cerebras.modelzoo.common.optim_utils import configure_param_groups
    from cerebras.modelzoo.models.nlp.llama.model import LlamaModel, LlamaModelConfig

    cstorch.backend("CPU")
    cstorch.amp.enable_mixed_precision(False)
    model = LlamaModel(LlamaModelConfig(**section()))
    settings = {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "correct_bias": True}
    optimizer = cstorch.optim.AdamW(configure_param_groups(model, dict(settings)), lr=1e-4, **settings)

    def step(batch):
        optimizer.zero_grad()
        model(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def transformers_llama():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    s = section()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=s["vocab_size"],
            hidden_size=s["hidden_size"],
            intermediate_size=s["filter_size"],
            num_hidden_layers=s["num_hidden_layers"],
            num_attention_heads=s["num_heads"],
            max_position_embeddings=LENGTH,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(batch):
        optimizer.zero_grad()
        ids = batch["input_ids"].long()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def matrix_product():
    import torch

    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return lambda _: a @ b


CONTENDERS = {
    "reference fp32": lambda: reference("fp32"),
    "reference bf16": lambda: reference("bf16"),
    "modelzoo fp32": modelzoo,
    "transformers fp32": transformers_llama,
    "matrix product": matrix_product,
}


def work(name: str) -> None:
    """Serve rounds: for every line read, time STEPS steps and print the fastest in seconds."""
    import torch

    torch.manual_seed(0)
    batch, step = token_batch(), CONTENDERS[name]()
    step(batch)
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        seconds = []
        for _ in range(STEPS):
            start = time.perf_counter()
            step(batch)
            seconds.append(time.perf_counter() - start)
        print(json.dumps(min(seconds)), flush=True)


def start(python: str, name: str) -> subprocess.Popen:
    command = [python, __file__, "--work", name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)


def answer(process: subprocess.Popen):
    """The next JSON line of a worker, past whatever else it prints."""
    for line in process.stdout:
        try:
            return json.loads(line)
        except ValueError:
            continue
    raise SystemExit("a contender failed; run it alone with --work NAME to see why")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modelzoo-python")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-bf16", action="store_true")
    parser.add_argument("--work", choices=CONTENDERS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    rows = {name: (sys.executable, name) for name in CONTENDERS if not name.startswith("modelzoo")}
    if options.without_bf16:
        del rows["reference bf16"]
    if options.modelzoo_python:
        rows["modelzoo fp32"] = (options.modelzoo_python, "modelzoo fp32")
        rows["reference fp32, the Model Zoo's torch"] = (options.modelzoo_python, "reference fp32")
    processes, versions = {}, {}
    for row, how in rows.items():  # one after another: warming up side by side would take minutes
        processes[row] = start(*how)
        versions[row] = answer(processes[row])["torch"]
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for _ in range(options.rounds):
        for row, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            seconds[row].append(answer(process))
    for process in processes.values():
        process.stdin.close()
        process.wait()

    limit = 2 * 2048**3 / min(seconds.pop("matrix product"))
    ours = min(seconds["reference fp32"])
    print(f"float32 matrix rate: {limit / 1e9:.0f} GFLOP/s; one step: {flops_per_step() / 1e9:.0f} GFLOP")
    print(f"{'':<40}{'torch':<14}{'s/step':>8}{'tokens/s':>10}{'of matrix rate':>16}{'reference is':>14}")
    for row, times in seconds.items():
        best = min(times)
        share = flops_per_step() / best / limit
        print(
            f"{row:<40}{versions[row]:<14}{best:>8.3f}{BATCH * LENGTH / best:>10.0f}{share:>16.0%}"
            f"{best / ours:>13.2f}x  (rounds to {max(times):.3f}, median {statistics.median(times):.3f})"
        )


if __name__ == "__main__":
    main()
