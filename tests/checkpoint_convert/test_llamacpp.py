"""Releases of both families work in llama.cpp.

Contract: llama.cpp's own convert_hf_to_gguf.py, as it is, turns a release into a GGUF file of float32; llama.cpp splits
text into the tokens that the release's tokenizer gives; and its logits on Arabic and English text are those of the
reference path and of transformers, at every position, for any number of heads, both sets of muP constants, tied and
untied heads, grouped queries, rotary scaling. What llama.cpp has no place for (docs/gguf-and-vllm.md) is lost as the
page says. The chat template comes along, and llama.cpp's own Jinja engine renders the card's prompts with it.

The environment variable LLAMA_CPP_SOURCE names llama.cpp's sources; llama_cpp (the package llama-cpp-python) runs them.
The engine is that of llama.cpp's server, in the package xllamacpp: llama-cpp-python renders with Python's Jinja.
"""

import ctypes
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from cerebras_jais.catalog.chat import chat_template
from cerebras_jais.data.documents import read_documents, sample_corpus_path
from checkpoint_convert.convert import convert_to_hf
from tests import published
from tests.cerebras_jais.catalog.test_chat_template import CASES
from tests.checkpoint_convert.examples import jais_section, llama_section, random_model, state_of, write_checkpoint
from tests.process import PATIENCE
from tests.tolerances import LLAMACPP_LOGITS, LLAMACPP_LOGITS_HALF_CACHE

try:
    import llama_cpp
    import sentencepiece  # the script reads tokenizer.model with it
    import xllamacpp
except ImportError as error:
    MISSING = str(error)
else:
    MISSING = "" if "LLAMA_CPP_SOURCE" in os.environ else "LLAMA_CPP_SOURCE does not name the sources of llama.cpp"
SOURCE = os.environ.get("LLAMA_CPP_SOURCE")
# The module is collected everywhere, so that a run of the mark knows which of its tests were skipped.
pytestmark = [pytest.mark.llamacpp, pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

PROMPTS = (
    "ما هي عاصمة الإمارات العربية المتحدة؟",
    "The highest mountain in the Emirates is",
    "العِلْمُ نُورٌ، وفي عام ٢٠٢٤ م",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Translate to Arabic: peace.  الترجمة: سلام",
    "They're 1,250 km away, aren't they? 🚀",
    "في صباح يوم",
    "a",
)
LENGTH = 96
SEED = 3  # no two best logits of the reference path lie within rounding of one another: asserted below
SET_B = dict(zip(("embeddings_scale", "output_logits_alpha"), published.UP_TO_13B, strict=True))
SET_A = dict(zip(("embeddings_scale", "output_logits_alpha"), published.OF_30B, strict=True))
# GPT-2's 50,257 tokens rounded up: like the published models, some rows belong to no token.
JAIS = {"vocab_size": 50304, "max_position_embeddings": LENGTH}
ADAPTED = {"vocab_size": 640, "max_position_embeddings": LENGTH}
JAIS_RELEASES = {
    "12-heads": jais_section(**JAIS, **SET_B),
    "16-heads-untied": jais_section(
        num_heads=16, hidden_size=64, **JAIS, **{**SET_B, "share_embedding_weights": False}
    ),
    "20-heads-30b-constants-untied": jais_section(
        num_heads=20, hidden_size=80, **JAIS, **{**SET_A, "share_embedding_weights": False}
    ),
    "40-heads": jais_section(num_heads=40, hidden_size=160, **JAIS, **SET_B),
    "56-heads-30b-constants": jais_section(num_heads=56, hidden_size=224, **JAIS, **SET_A),
}
ADAPTED_RELEASES = {
    "untied": llama_section(**ADAPTED),
    "tied": llama_section(num_heads=20, hidden_size=80, share_embedding_weights=True, **ADAPTED),
    "grouped": llama_section(num_heads=40, hidden_size=160, kv_groups=8, rope_theta=500000.0, **ADAPTED),
    "grouped-tied": llama_section(num_heads=56, hidden_size=224, kv_groups=7, share_embedding_weights=True, **ADAPTED),
    "biases-interpolated": llama_section(
        use_ffn_bias=True,
        use_projection_bias_in_attention=True,
        use_ffn_bias_in_attention=True,
        pos_scaling_factor=4.0,
        **ADAPTED,
    ),
}


@pytest.fixture(scope="module")
def gpt2_tokenizer(tmp_path_factory):
    """GPT-2's tokenizer, from the vocabulary that llama.cpp's sources carry.

    The script accepts a byte-level BPE only if the ids that it gives to a certain text are known to the script; those
    of GPT-2 are, and GPT-2's way of splitting text is that of Jais.
    """
    sys.path.insert(0, str(Path(SOURCE) / "gguf-py"))
    try:
        import gguf
    finally:
        sys.path.pop(0)
    fields = gguf.GGUFReader(Path(SOURCE) / "models" / "ggml-vocab-gpt-2.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    directory = tmp_path_factory.mktemp("gpt2")

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[-1], "eos_token": tokens[-1]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory, lambda text: tokenizer.encode(text).ids


@pytest.fixture(scope="module")
def llama2_tokenizer(tmp_path_factory):
    """A SentencePiece tokenizer with Llama 2's settings, trained on the sample corpus."""
    directory = tmp_path_factory.mktemp("llama2")
    documents = read_documents(sample_corpus_path())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for document in documents for line in document.text.splitlines()),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=ADAPTED["vocab_size"] - 30,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.995,
        minloglevel=2,
    )
    (directory / "tokenizer.vocab").unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    return directory, pieces.encode


def make_gguf(directory, section, tokenizer, *arguments, chat=False):
    """A release with random weights and what llama.cpp's script makes of it: the model, the release, the GGUF file."""
    model = random_model(section, SEED)
    checkpoint = write_checkpoint(directory / "c.mdl", section, state_of(model))
    convert_to_hf(checkpoint, directory / "release", tokenizer=tokenizer, chat=chat)
    output = directory / "model.gguf"
    script = str(Path(SOURCE) / "convert_hf_to_gguf.py")
    command = [sys.executable, script, str(directory / "release"), "--outtype", "f32", "--outfile", str(output)]
    run = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return model, directory / "release", output


def open_gguf(path, cache=None):
    cache = llama_cpp.GGML_TYPE_F32 if cache is None else cache
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)
    open_gguf.kept = quiet  # llama.cpp keeps calling it
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    return llama_cpp.Llama(
        str(path), n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True, type_k=cache, type_v=cache, verbose=False
    )


def logits_of(gguf_model, ids):
    """llama.cpp's logits at every position, float32 [L, V]."""
    gguf_model.reset()
    gguf_model.eval(ids)
    return np.array(gguf_model.scores[: len(ids)])


def both_references(model, release, rows):
    """Logits of the reference path and of transformers for each row of ids, float32 [L, V] each."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(release, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.inference_mode():
        for ids in rows:
            row = torch.tensor([ids])
            yield model.logits(row)[0].numpy(), theirs(input_ids=row).logits[0].numpy()


def assert_same_model(model, release, gguf_model, rows):
    largest = difference = 0.0
    margin = np.inf
    for ids, references in zip(rows, both_references(model, release, rows), strict=True):
        found = logits_of(gguf_model, ids)
        for reference in references:
            assert (found.argmax(-1) == reference.argmax(-1)).all()
            difference = max(difference, np.abs(found - reference).max())
            largest = max(largest, np.abs(reference).max())
            second, first = np.partition(reference, -2, axis=-1)[:, -2:].T
            margin = min(margin, (first - second).min())
    print(f"largest difference {difference:.2e}, largest logit {largest:.2f}, relative {difference / largest:.1e}")
    assert margin > 2 * LLAMACPP_LOGITS * largest, "two best logits are a tie within rounding: choose another SEED"
    assert difference <= LLAMACPP_LOGITS * largest


@pytest.mark.parametrize("name", JAIS_RELEASES)
def test_a_jais_release_gives_the_same_logits_in_llama_cpp(tmp_path, gpt2_tokenizer, name):
    directory, encode = gpt2_tokenizer
    # Without --no-lazy the script stops at the ALiBi slopes of every Jais model.
    model, release, output = make_gguf(tmp_path, JAIS_RELEASES[name], directory, "--no-lazy")
    gguf_model = open_gguf(output)
    rows = [encode(text)[:LENGTH] for text in PROMPTS]
    for text, ids in zip(PROMPTS, rows, strict=True):
        assert gguf_model.tokenize(text.encode())[:LENGTH] == ids
    assert_same_model(model, release, gguf_model, rows)


@pytest.mark.parametrize("name", ADAPTED_RELEASES)
def test_an_adapted_release_gives_the_same_logits_in_llama_cpp(tmp_path, llama2_tokenizer, name):
    directory, encode = llama2_tokenizer
    model, release, output = make_gguf(tmp_path, ADAPTED_RELEASES[name], directory)
    gguf_model = open_gguf(output)
    rows = [[1, *encode(text)][:LENGTH] for text in PROMPTS]
    for text, ids in zip(PROMPTS, rows, strict=True):
        assert gguf_model.tokenize(text.encode())[:LENGTH] == ids
    assert_same_model(model, release, gguf_model, rows)


def test_llama_cpps_own_cache_of_16_bits_moves_the_logits_little(tmp_path, gpt2_tokenizer):
    directory, encode = gpt2_tokenizer
    model, release, output = make_gguf(tmp_path, JAIS_RELEASES["12-heads"], directory, "--no-lazy")
    gguf_model = open_gguf(output, cache=llama_cpp.GGML_TYPE_F16)
    rows = [encode(text)[:LENGTH] for text in PROMPTS]
    for ids, (reference, _) in zip(rows, both_references(model, release, rows), strict=True):
        difference = np.abs(logits_of(gguf_model, ids) - reference).max()
        print(f"relative difference {difference / np.abs(reference).max():.1e}")
        assert difference <= LLAMACPP_LOGITS_HALF_CACHE * np.abs(reference).max()


@pytest.mark.parametrize(
    "change", [{"pos_scaling_factor": 2.0}, {"scale_qk_dot_by_d": False}], ids=["alibi-scaling", "scale-by-root-of-d"]
)
def test_what_llama_cpp_has_no_place_for_is_lost(tmp_path, gpt2_tokenizer, change):
    directory, encode = gpt2_tokenizer
    model, release, output = make_gguf(tmp_path, {**JAIS_RELEASES["12-heads"], **change}, directory, "--no-lazy")
    rows = [encode(PROMPTS[0])[:LENGTH]]
    ours, theirs = next(both_references(model, release, rows))
    lost = np.abs(logits_of(open_gguf(output), rows[0]) - ours).max() / np.abs(ours).max()
    kept = np.abs(theirs - ours).max() / np.abs(ours).max()
    assert kept <= LLAMACPP_LOGITS < 10 * LLAMACPP_LOGITS < lost


@pytest.mark.parametrize("family", ["jais", "adapted"])
def test_llama_cpps_own_jinja_renders_the_prompts_of_the_card(tmp_path, gpt2_tokenizer, llama2_tokenizer, family):
    if family == "jais":
        made = make_gguf(tmp_path, JAIS_RELEASES["12-heads"], gpt2_tokenizer[0], "--no-lazy", chat=True)
    else:
        made = make_gguf(tmp_path, ADAPTED_RELEASES["untied"], llama2_tokenizer[0], chat=True)
    assert open_gguf(made[-1]).metadata["tokenizer.chat_template"] == chat_template()
    params = xllamacpp.CommonParams()
    params.model.path = str(made[-1])
    params.n_ctx, params.n_parallel, params.warmup, params.port = 256, 1, False, 0
    server = xllamacpp.Server(params)
    for messages, keywords, expected in CASES.values():
        if keywords.get("add_generation_prompt", True):  # the server continues a response that ends a conversation
            body = json.dumps({"messages": messages, "chat_template_kwargs": keywords}).encode()
            request = urllib.request.Request(
                f"{server.listening_address}/apply-template", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                assert json.load(answer)["prompt"] == expected
