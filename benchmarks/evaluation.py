"""How fast multiple-choice questions are scored, and in how much memory: against lm_eval's own backend `hf`.

    python benchmarks/evaluation.py

A release of the model's published sizes with fresh weights, float32. Each backend is a process of its own, with the
same threads, and scores the same questions: 120 tokens each, four options of 3 to 9 tokens, drawn evenly from the
vocabulary. Time is that of the scoring alone; memory is the peak above what the process holds with its model loaded;
tokens and rows of logits are counted where they enter the embedding and leave the head. `hf` has batches of 8, its
usual choice. The scores of both are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from checkpoint_convert.convert import convert_to_hf
from tests.chat_tokenizers import write_tokenizer
from tests.checkpoint_convert.examples import PUBLISHED, state_of, write_checkpoint

QUESTION, OPTIONS, SHORTEST, LONGEST = 120, 4, 3, 9
HF_BATCH = 8
SCORE, SCORE_RELATIVE = 1e-4, 1e-6  # how near the scores must be


class Counted(TorchDispatchMode):
    """Counts the tokens that are embedded, and the rows of logits."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.tokens, self.rows = vocabulary, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.embedding.default and args[0].shape[0] == self.vocabulary:
            self.tokens += args[1].numel()
        products = (
            torch.ops.aten.linear.default,
            torch.ops.aten.mm.default,
            torch.ops.aten.addmm.default,
            torch.ops.mkldnn._linear_pointwise.default,
        )
        if func in products and out.shape[-1] == self.vocabulary:
            self.rows += out.numel() // self.vocabulary
        return out


def write_release(folder: Path, model: str) -> Path:
    """A release of a published model's sizes with the weights that training begins with."""
    section = dict(PUBLISHED[model][0])
    torch.manual_seed(0)
    write_checkpoint(folder / "c.mdl", section, state_of(LanguageModel(DecoderConfig.from_section(section))))
    convert_to_hf(folder / "c.mdl", folder / "release", tokenizer=write_tokenizer("jais", folder / "tokenizer"))
    (folder / "c.mdl").unlink()
    return folder / "release"


def asked(questions: int, vocabulary: int) -> list[tuple[Any, list[int], list[int]]]:
    """The options of questions, as the backends of lm_eval take them."""
    draw, found = random.Random(0), []
    for number in range(questions):
        context = draw.choices(range(1, vocabulary), k=QUESTION)
        for option in range(OPTIONS):
            length = draw.randint(SHORTEST, LONGEST)
            found.append(((f"{number}", f"{option}"), context, draw.choices(range(1, vocabulary), k=length)))
    return found


def backend(name: str, release: Path, record: Path) -> tuple[Any, int]:
    """A backend of lm_eval with its model, and the size of the vocabulary."""
    if name == "hf":
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(pretrained=str(release), trust_remote_code=True, dtype="float32", device="cpu", batch_size=HF_BATCH)
        return lm, lm.model.config.vocab_size
    from cerebras_jais.chat.engine import open_engine
    from cerebras_jais.endpoint.record import open_record
    from cerebras_jais.evaluate.harness.lm import JaisLM

    engine = open_engine(release)
    opened = open_record(record)
    lm = JaisLM(engine, opened.__enter__(), "model")
    lm.kept = opened  # open until the process ends
    return lm, engine.vocabulary


def memory(kind: str) -> int:
    """Kilobytes of this process: VmRSS, resident now, or VmHWM, at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{kind}:")).split()[1])


def measured(name: str, release: Path, questions: int) -> dict[str, Any]:
    """What one backend takes; run in a process of its own."""
    lm, vocabulary = backend(name, release, release.parent / f"{name}.jsonl")
    requests = asked(questions, vocabulary)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = memory("VmRSS")
    began = time.perf_counter()
    scores = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    seconds = time.perf_counter() - began
    peak = memory("VmHWM")
    with Counted(vocabulary) as counts:  # which takes time of its own
        lm._loglikelihood_tokens(asked(questions + 1, vocabulary)[-OPTIONS:], disable_tqdm=True)
    return {
        "seconds": seconds,
        "mib": (peak - before) / 1024,
        "tokens": counts.tokens,
        "rows": counts.rows,
        "scores": [score for score, _ in scores],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="jais-family-590m", choices=sorted(PUBLISHED))
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--backend", choices=("hf", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--release", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.backend:
        print(json.dumps(measured(given.backend, given.release, given.questions)))
        return
    folder = Path(tempfile.mkdtemp(prefix="evaluation_"))
    try:
        release = write_release(folder, given.model)
        found = {}
        for name in ("hf", "ours"):
            command = [sys.executable, __file__, "--backend", name, "--release", release]
            command += ["--questions", str(given.questions), "--model", given.model]
            environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(list(map(str, command)), env=environment, check=True, stdout=subprocess.PIPE)
            found[name] = json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder)
    asked_of_each = f"{given.questions} questions of {QUESTION} tokens, {OPTIONS} options each"
    print(f"{given.model}, {asked_of_each}, {given.threads} threads")
    print(f"{'':<8}{'seconds':>9}{'a question':>12}{'memory, MiB':>13}{'tokens of one':>15}{'rows of one':>13}")
    for name, row in found.items():
        each = row["seconds"] / given.questions
        print(f"{name:<8}{row['seconds']:>9.1f}{each:>12.2f}{row['mib']:>13.0f}{row['tokens']:>15}{row['rows']:>13}")
    pairs = list(zip(found["hf"]["scores"], found["ours"]["scores"], strict=True))
    apart = max(abs(one - other) for one, other in pairs)
    near = all(abs(one - other) <= SCORE + SCORE_RELATIVE * abs(one) for one, other in pairs)
    print(f"ratio {found['hf']['seconds'] / found['ours']['seconds']:.2f}; scores differ by at most {apart:.1e}")
    if not near:
        sys.exit("the scores of the backends differ")


if __name__ == "__main__":
    main()
