"""Releases of both families in vLLM, with this project installed and nothing else.

Contract: vLLM's engine gives, for 50 prompts in Arabic, English and code, the greedy tokens of transformers without a
cache (the best two may change places where they are within rounding) and the log-probabilities of its likeliest tokens,
in float32: any number of heads, both sets of muP constants, tied and untied heads, interpolated ALiBi, a filter that
does not divide, the keys of the first Jais code; in one process, two of tensor parallel, two of pipeline parallel. An
adapted release needs no plugin. The OpenAI server answers with the template of the release. A wrong release is refused
in one line. `trust_remote_code` is never given.

The CPU build of vLLM has attention kernels for some head sizes only, 32 the smallest. Its pipeline parallel needs the
compiled model: with enforce_eager it makes no buffers for what comes from the stage before.
"""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from cerebras_jais.data.documents import read_documents, sample_corpus_path
from checkpoint_convert.convert import convert_to_hf
from tests import published
from tests.card import prompt
from tests.cerebras_jais.vllm_plugin.engine import LIKELIEST
from tests.chat_tokenizers import TOKENIZERS, VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import jais_section, llama_section, random_model, state_of, write_checkpoint
from tests.process import wait_until
from tests.tolerances import VLLM_LOG_PROBABILITIES, VLLM_TIE

GROUP = "vllm.general_plugins"
INSTALLED = any(entry.name == "cerebras_jais" for entry in importlib.metadata.entry_points(group=GROUP))
MISSING = "" if importlib.util.find_spec("vllm") else "vLLM is not installed"
MISSING = MISSING or ("" if INSTALLED else "this project is not installed beside vLLM: no entry point")
# The module is collected everywhere, so that a run of the mark knows which of its tests were skipped.
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

ROOT = Path(__file__).parents[3]
LENGTH, TOKENS, HEAD_SIZE = 256, 16, 32
NAMES = ("embeddings_scale", "output_logits_alpha")
SET_B = dict(zip(NAMES, published.UP_TO_13B, strict=True))
SET_A = dict(zip(NAMES, published.OF_30B, strict=True))
EAGER = {"enforce_eager": True}
TWO = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", **EAGER}
PIPELINE = {
    "pipeline_parallel_size": 2,
    "distributed_executor_backend": "mp",
    "compilation_config": {"backend": "eager"},
}


def jais(heads, **changes):
    """A section of wide weights and logits: the factor on logits is that of a base width of 256, as published."""
    sizes = {"num_heads": heads, "hidden_size": heads * HEAD_SIZE, "filter_size": 3 * heads * HEAD_SIZE // 2}
    base = {"mup_base_hidden_size": 256, "mup_base_filter_size": 384.0}
    return jais_section(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **{**sizes, **base, **SET_B, **changes})


ADAPTED = llama_section(
    vocab_size=VOCABULARY, max_position_embeddings=LENGTH, hidden_size=12 * HEAD_SIZE, filter_size=1000, kv_groups=4
)
UNTIED = {"share_embedding_weights": False}
SECTIONS = {
    "12-heads": jais(12, filter_size=1001),
    "20-heads-by-root-of-d-untied": jais(20, scale_qk_dot_by_d=False, **UNTIED, **SET_A),
    "40-heads-interpolated": jais(40, pos_scaling_factor=4.0),
    "56-heads-untied": jais(56, **UNTIED, **SET_A),
    "adapted": ADAPTED,
}


@torch.no_grad()
def model_of(section):
    """Random weights, of which those of q and k give scores of one size whatever q.k is divided by.

    Scores over sqrt(d) would otherwise have a spread of 15, and float32 alone moves log-probabilities by 1.6e-4 there
    (transformers against itself in float64).
    """
    model = random_model(section, 3)
    if not section.get("scale_qk_dot_by_d"):
        for name, parameter in model.named_parameters():
            if "proj_q_dense" in name or "proj_k_dense" in name:
                parameter.mul_(HEAD_SIZE**-0.25)
    return model


@pytest.fixture(scope="module")
def release_of(tmp_path_factory):
    """Makes a chat release of random weights, once each."""
    made = {}

    def make(name):
        if name not in made:
            section, family = SECTIONS[name], "llama" if name == "adapted" else "jais"
            directory = tmp_path_factory.mktemp(name)
            checkpoint = write_checkpoint(directory / "c.mdl", section, state_of(model_of(section)))
            tokenizer = write_tokenizer(family, directory / "tokenizer")
            convert_to_hf(checkpoint, directory / "release", tokenizer=tokenizer, chat=True)
            checkpoint.unlink()
            made[name] = directory / "release"
        return made[name]

    return make


def surroundings(tmp_path, **changes):
    """What vLLM needs on a small shared machine."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(tmp_path / "cache"),
        **changes,
    }


def prompts_of(family):
    """Ids of 50 prompts of many lengths: 22 Arabic, 22 English, 6 of code."""
    tokenizer, left, found = TOKENIZERS[family](), {"ar": 22, "en": 22, "code": 6}, []
    for document in read_documents(sample_corpus_path()):
        if left.get(document.language, 0):
            left[document.language] -= 1
            found.append(tokenizer.encode(document.text).ids[: 3 + 4 * len(found)])
    assert len(found) == 50
    return found


def edit_weights(release, change):
    (path,) = release.glob("*.safetensors")
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def generate(tmp_path, release, prompts, arguments, **changes):
    order, answer = tmp_path / "order.json", tmp_path / "answer.json"
    given = {"model": str(release), "dtype": "float32", "max_model_len": LENGTH, "max_logprobs": LIKELIEST, **arguments}
    order.write_text(json.dumps({"arguments": given, "prompts": prompts, "tokens": TOKENS}))
    command = [sys.executable, "-m", "tests.cerebras_jais.vllm_plugin.engine", str(order), str(answer)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=surroundings(tmp_path, **changes))
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-6000:]
    return json.loads(answer.read_text())


def reference(release):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(release, trust_remote_code=True, dtype=torch.float32).eval()


@torch.inference_mode()
def assert_same(model, prompts, answers):
    """Each chosen token is transformers' best after the same ids, and so, one by one, the texts are the same."""
    worst, ties, spread = 0.0, 0, []
    for ids, answer in zip(prompts, answers, strict=True):
        assert len(answer["ids"]) == TOKENS
        row = torch.tensor([[*ids, *answer["ids"]]])
        logs = model(input_ids=row, use_cache=False).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        spread.append(logs.std(-1).mean().item())
        for log, chosen, found in zip(logs, answer["ids"], answer["logs"], strict=True):
            behind = (log.max() - log[chosen]).item()
            assert behind < VLLM_TIE
            ties += behind > 0
            worst = max(worst, *(abs(log[int(id)].item() - value) for id, value in found.items()))
    print(
        f"largest difference {worst:.1e} of {len(prompts) * TOKENS} tokens, {ties} ties, spread {np.mean(spread):.2f}"
    )
    assert worst <= VLLM_LOG_PROBABILITIES
    assert np.mean(spread) > 0.5  # the logits are not all alike


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("12-heads", EAGER),
        ("20-heads-by-root-of-d-untied", EAGER),
        ("40-heads-interpolated", TWO),
        ("56-heads-untied", TWO),
        ("12-heads", PIPELINE),
        ("20-heads-by-root-of-d-untied", PIPELINE),
    ],
    ids=["12-tied-odd-filter", "20-untied", "40-interpolated-tp2", "56-untied-tp2", "12-tied-pp2", "20-untied-pp2"],
)
def test_a_jais_release_gives_the_tokens_of_transformers(tmp_path, release_of, name, arguments):
    prompts = prompts_of("jais")
    answers = generate(tmp_path, release_of(name), prompts, arguments)
    assert_same(reference(release_of(name)), prompts, answers)


def test_an_adapted_release_needs_no_plugin(tmp_path, release_of):
    prompts = prompts_of("llama")
    answers = generate(tmp_path, release_of("adapted"), prompts, EAGER, VLLM_PLUGINS="")
    assert_same(reference(release_of("adapted")), prompts, answers)


def test_the_first_published_layout_loads_without_its_code(tmp_path, release_of):
    """Keys of the first Jais code, weights with the masks that it stored, and no code that could be run."""
    prompts, changed = prompts_of("jais"), tmp_path / "published"
    shutil.copytree(release_of("12-heads"), changed, ignore=shutil.ignore_patterns("*.py"))
    config = json.loads((changed / "config.json").read_text())
    config["embeddings_scale"] = config.pop("mup_embeddings_scale")
    config["width_scale"] = config.pop("mup_output_alpha") * config.pop("mup_width_scale")
    config["scale_qk_dot_by_d"] = config.pop("mup_scale_qk_dot_by_d")
    del config["cerebras"]
    (changed / "config.json").write_text(json.dumps(config))
    masks = {"bias": np.ones((1, 1, LENGTH, LENGTH), bool), "masked_bias": np.array(-1e4, np.float32)}
    edit_weights(changed, lambda weights: weights.update({f"transformer.h.0.attn.{k}": v for k, v in masks.items()}))
    assert_same(reference(release_of("12-heads")), prompts, generate(tmp_path, changed, prompts, EAGER))


# ---- the server ----------------------------------------------------------------------------------------------------


def serve(release, tmp_path, port, log):
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(release), "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", str(LENGTH * 2)]
    # The command asks for the version of a package vllm, where the build for CPUs has another name.
    named = tmp_path / "named" / "vllm-0+cpu.dist-info"
    named.mkdir(parents=True)
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0+cpu\n")
    paths = f"{ROOT}:{named.parent}"
    environment = surroundings(tmp_path, VLLM_ALLOW_LONG_MAX_MODEL_LEN="1", PYTHONPATH=paths)
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path, env=environment)


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def is_up(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except OSError:
        return False


def test_the_openai_server_answers_a_chat_in_arabic_with_the_template_of_the_release(tmp_path, release_of):
    from openai import OpenAI

    release, port, question = release_of("12-heads"), free_port(), "ما هي عاصمة الإمارات؟"
    with open(tmp_path / "log", "wb") as log:
        server = serve(release, tmp_path, port, log)
        try:
            wait_until(lambda: is_up(port) or server.poll() is not None, "the server")
            assert server.poll() is None, (tmp_path / "log").read_text()[-4000:]
            client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
            answer = client.chat.completions.create(
                model=str(release),
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=TOKENS,
                extra_body={"return_token_ids": True, "repetition_penalty": 1.0, "ignore_eos": True},
            )
        finally:
            server.terminate()
            server.wait()
    expected = TOKENIZERS["jais"]().encode(prompt("ar", question)).ids
    assert answer.prompt_token_ids == expected
    assert answer.choices[0].message.content
    row = torch.tensor([[*expected, *answer.choices[0].token_ids]])
    with torch.inference_mode():
        logits = reference(release)(input_ids=row, use_cache=False).logits[0, len(expected) - 1 : -1]
    chosen = logits.gather(-1, row[0, len(expected) :, None])[:, 0]
    assert (logits.max(-1).values - chosen < VLLM_TIE).all()
    assert len(chosen) == TOKENS


def lack_a_tensor(release):
    edit_weights(release, lambda weights: weights.pop("transformer.h.1.mlp.c_fc2.bias"))


def ask_for_learned_positions(release):
    config = json.loads((release / "config.json").read_text())
    (release / "config.json").write_text(json.dumps({**config, "position_embedding_type": "learned"}))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lack_a_tensor, "ReleaseError: the weights lack layer 1: mlp.c_fc2.bias; fetch it again"),
        (ask_for_learned_positions, "position_embedding_type must be \"alibi\", got 'learned'"),
    ],
)
def test_a_wrong_release_is_refused_in_one_line(tmp_path, release_of, damage, line):
    wrong = tmp_path / "release"
    shutil.copytree(release_of("12-heads"), wrong)
    damage(wrong)
    with open(tmp_path / "log", "wb") as log:
        server = serve(wrong, tmp_path, free_port(), log)
        assert server.wait() != 0
    printed = (tmp_path / "log").read_text()
    assert any(line in one for one in printed.splitlines()), printed[-4000:]
