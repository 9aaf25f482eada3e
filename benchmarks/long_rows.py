"""Peak memory of rows as long as the context of jais-family-30b-16k, on a CPU in float32.

    python benchmarks/long_rows.py --path reference|transformers

One layer, forward and backward, of a row of `--tokens` tokens; then a model of two layers answers a prompt of so many
tokens as `--prompt` says with 8 more, by `cerebras_jais.chat` or by transformers' `generate`. The shape is that of
configs/jais-family-30b-16k but for the number of layers and a vocabulary of 700; `--heads` takes a model of fewer heads
of the same size, and of a narrower filter in proportion. Each measurement is a process of its own, and its peak the
largest resident memory of that process (ru_maxrss), imports and building included. What is there without attention is
the floor: weights, gradients, and the activations that a layer of this width keeps.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODEL = "jais-family-30b-16k"
VOCABULARY, NEW_TOKENS = 700, 8
GB = 1e9


def section_of(heads: int, layers: int) -> dict[str, Any]:
    import yaml

    trainer = yaml.safe_load((ROOT / "configs" / MODEL / "16k.yaml").read_text())["trainer"]
    model: dict[str, Any] = trainer["init"]["model"]
    narrower = heads / model["num_heads"]
    return {
        **model,
        "vocab_size": VOCABULARY,
        "num_hidden_layers": layers,
        "num_heads": heads,
        "hidden_size": round(model["hidden_size"] * narrower),
        "filter_size": round(model["filter_size"] * narrower),
        "mup_base_filter_size": model["mup_base_filter_size"],
    }


def release_config(config: Any) -> Any:
    from checkpoint_convert.configs.jais import jais_keys
    from checkpoint_convert.hf_code.configuration_jais import JAISConfig

    return JAISConfig(**jais_keys(config), bos_token_id=0, eos_token_id=0, pad_token_id=0)


def layer(path: str, config: Any, tokens: int) -> dict[str, float]:
    """Forward and backward of the decoder's only layer, between the embedding and the last norm."""
    import torch

    if path == "reference":
        from cerebras_jais.model.decoder import Decoder

        model: Any = Decoder(config)
    else:
        from checkpoint_convert.hf_code.modeling_jais import JAISModel

        model = JAISModel(release_config(config)).train()
    row = torch.randint(VOCABULARY, (1, tokens))
    start = time.perf_counter()
    h_BLM = model(row) if path == "reference" else model(row, use_cache=False).last_hidden_state
    middle = time.perf_counter()
    h_BLM.backward(torch.randn_like(h_BLM))
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    return {"forward, s": middle - start, "backward, s": time.perf_counter() - middle}


def generation(path: str, config: Any, tokens: int) -> dict[str, float]:
    import torch

    prompt = torch.randint(1, VOCABULARY, (1, tokens))
    if path == "reference":
        from cerebras_jais.chat.engine import Engine
        from cerebras_jais.chat.forward import Forward
        from cerebras_jais.chat.sampling import Sampling
        from cerebras_jais.model.decoder import LanguageModel
        from tests.chat_tokenizers import byte_level

        engine = Engine(MODEL, Forward(LanguageModel(config)), byte_level(), eos=())
        start = time.perf_counter()
        answer = engine.complete([prompt[0].tolist()], [Sampling(max_new_tokens=NEW_TOKENS)])[0]
        new_tokens = answer.completion_tokens
    else:
        from checkpoint_convert.hf_code.modeling_jais import JAISLMHeadModel

        model = JAISLMHeadModel(release_config(config)).eval()
        start = time.perf_counter()
        options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
        answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        new_tokens = answer.shape[1] - tokens
    assert new_tokens == NEW_TOKENS
    return {"prompt and answer, s": time.perf_counter() - start}


MEASURED = {"layer": (1, layer), "generation": (2, generation)}


def measure(name: str, path: str, heads: int, tokens: int) -> None:
    """In a process of its own: prints the peak, in GB, and the times."""
    import torch

    from cerebras_jais.model.config import DecoderConfig

    torch.manual_seed(0)
    layers, run = MEASURED[name]
    found = run(path, DecoderConfig.from_section(section_of(heads, layers)), tokens)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak, GB": round(peak / GB, 2), **{key: round(value, 1) for key, value in found.items()}}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", choices=("reference", "transformers"), required=True)
    parser.add_argument("--only", choices=tuple(MEASURED), help="one of the two measurements")
    parser.add_argument("--heads", type=int, default=56, help="of 128 each (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16384, help="of the row of the layer (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=16000, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in [args.only] if args.only else MEASURED:
        tokens = args.tokens if name == "layer" else args.prompt
        if args.here:
            measure(name, args.path, args.heads, tokens)
            continue
        options = ["--path", args.path, "--only", name, "--heads", str(args.heads), "--here"]
        options += ["--tokens", str(args.tokens), "--prompt", str(args.prompt)]
        child = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
        print(f"{args.path}, {name}, {args.heads} heads, {tokens} tokens: {child.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
