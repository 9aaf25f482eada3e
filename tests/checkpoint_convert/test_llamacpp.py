"""GGUF files of both families work in llama.cpp, and are what llama.cpp's own script makes of the release.

Contract: `to-gguf` gives, bit for bit, the tensors that llama.cpp's own convert_hf_to_gguf.py gives for the same
release in float32, float16 and q8_0; llama.cpp splits text into the tokens that the release's tokenizer gives, also
with a tokenizer that its script does not know; its log-probabilities on Arabic, English and code are those of the
reference path and of transformers, for any number of heads, both sets of muP constants, tied and untied heads, grouped
queries, rotary scaling; blocks of 8 bits cost next to nothing in bits per byte. The chat template comes along: its own
Jinja engine renders the card's prompts with it, and its server answers a chat. What llama.cpp has no place for, its
script loses, and `to-gguf` refuses (llamacpp/test_convert.py).

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
from cerebras_jais.errors import UserError
from checkpoint_convert.convert import convert_to_hf
from checkpoint_convert.llamacpp.convert import convert_to_gguf
from tests import published
from tests.cerebras_jais.catalog.test_chat_template import CASES
from tests.chat_tokenizers import TOKENIZERS, VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import jais_section, llama_section, random_model, state_of, write_checkpoint
from tests.process import PATIENCE
from tests.tolerances import (
    LLAMACPP_LOG_PROBABILITY,
    LLAMACPP_LOGITS,
    LLAMACPP_LOGITS_HALF_CACHE,
    LLAMACPP_TIE,
    Q8_0_BITS_PER_BYTE,
)

try:
    import gguf
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
SOURCES = (
    "ما هي عاصمة الإمارات العربية المتحدة؟ العِلْمُ نُورٌ والجهلُ ظلام، وفي عام ٢٠٢٤ م زار المدينة ملايين السياح",
    "The highest mountain in the Emirates is Jebel Jais. They're 1,250 km away, aren't they? Peace be with you all",
    "def mean(values):\n    if not values:\n        raise ValueError('empty')\n    return sum(values) / len(values)\n",
    "Translate to Arabic: peace.  الترجمة: سلام 🚀 x = [i ** 2 for i in range(10)] وهذا مثال آخر of mixed text",
)
PER_SOURCE = 25
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


def make_release(directory, section, tokenizer, *, chat=False, dtype=None):
    """A model of random weights, its checkpoint and its release."""
    model = random_model(section, SEED)
    checkpoint = write_checkpoint(directory / "c.mdl", section, state_of(model))
    convert_to_hf(checkpoint, directory / "release", tokenizer=tokenizer, chat=chat, dtype=dtype)
    return model, checkpoint, directory / "release"


def make_gguf(directory, section, tokenizer, *, chat=False, type_="f32"):
    """A model of random weights, its release and its GGUF file."""
    model, _, release = make_release(directory, section, tokenizer, chat=chat)
    convert_to_gguf(release, directory / "model.gguf", type_=type_)
    return model, release, directory / "model.gguf"


def by_script(release, output, type_="f32"):
    """What llama.cpp's script makes of a release. Without --no-lazy it stops at the ALiBi slopes of a Jais model."""
    script = str(Path(SOURCE) / "convert_hf_to_gguf.py")
    command = [sys.executable, script, str(release), "--outtype", type_, "--outfile", str(output), "--no-lazy"]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert run.returncode == 0, run.stderr[-3000:]
    return output


def tensors_in(path):
    """Name -> element type, shape and bytes, as the package gguf reads them."""
    return {
        tensor.name: (tensor.tensor_type.name, tuple(map(int, tensor.shape)), tensor.data.tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }


def open_gguf(path, cache=None):
    cache = llama_cpp.GGML_TYPE_F32 if cache is None else cache
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)
    open_gguf.kept = quiet  # llama.cpp keeps calling it
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    return llama_cpp.Llama(
        str(path), n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True, type_k=cache, type_v=cache, verbose=False
    )


def serve(path, context=256):
    """llama.cpp's server with a model, keys and values in 32 bits, on a port of its own choice."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.port = context, 1, False, 0
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def asked(server, path, body):
    """The answer of the server to a request, as JSON."""
    request = urllib.request.Request(
        f"{server.listening_address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


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


RELEASES = {**JAIS_RELEASES, **ADAPTED_RELEASES}


@pytest.fixture(scope="module")
def tokenizers(gpt2_tokenizer, llama2_tokenizer):
    """Name of a release -> the directory of its tokenizer, and the ids that it gives to a text."""
    directory, encode = llama2_tokenizer
    return {
        name: gpt2_tokenizer if name in JAIS_RELEASES else (directory, lambda text: [1, *encode(text)])
        for name in RELEASES
    }


@pytest.mark.parametrize("name", RELEASES)
def test_the_tensors_are_those_of_llama_cpps_own_script(tmp_path, tokenizers, name):
    directory, _ = tokenizers[name]
    _, checkpoint, release = make_release(tmp_path, RELEASES[name], directory)
    for type_ in ("f32", "f16", "q8_0"):
        expected = tensors_in(by_script(release, tmp_path / f"script-{type_}.gguf", type_))
        convert_to_gguf(release, tmp_path / f"{type_}.gguf", type_=type_)
        assert tensors_in(tmp_path / f"{type_}.gguf") == expected
        convert_to_gguf(checkpoint, tmp_path / f"c-{type_}.gguf", type_=type_, tokenizer=directory)
        assert tensors_in(tmp_path / f"c-{type_}.gguf") == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["16-heads-untied", "grouped"])
def test_the_tensors_are_those_of_the_script_whatever_the_release_is_stored_in(tmp_path, tokenizers, name, dtype):
    _, _, release = make_release(tmp_path, RELEASES[name], tokenizers[name][0], dtype=dtype)
    for type_ in ("f32", "f16", "q8_0"):
        expected = tensors_in(by_script(release, tmp_path / f"script-{type_}.gguf", type_))
        convert_to_gguf(release, tmp_path / f"{type_}.gguf", type_=type_)
        assert tensors_in(tmp_path / f"{type_}.gguf") == expected


@pytest.mark.parametrize("name", RELEASES)
def test_a_model_gives_the_same_logits_in_llama_cpp(tmp_path, tokenizers, name):
    directory, encode = tokenizers[name]
    model, release, output = make_gguf(tmp_path, RELEASES[name], directory)
    gguf_model = open_gguf(output)
    rows = [encode(text)[:LENGTH] for text in PROMPTS]
    for text, ids in zip(PROMPTS, rows, strict=True):
        assert gguf_model.tokenize(text.encode())[:LENGTH] == ids
    assert_same_model(model, release, gguf_model, rows)


@pytest.mark.parametrize("name", RELEASES)
def test_log_probabilities_after_a_hundred_prefixes_are_ours_through_xllamacpp(tmp_path, tokenizers, name):
    directory, encode = tokenizers[name]
    model, _, output = make_gguf(tmp_path, RELEASES[name], directory)
    prefixes = [encode(text[:length])[:LENGTH] for text in SOURCES for length in range(4, 4 + 2 * PER_SOURCE, 2)]
    assert len(prefixes) == 100
    server, letter = serve(output), encode(" a")[-1]
    for ids in prefixes:
        # The server says nothing of a token that ends the text or a part of a letter, so that a letter is wanted of it;
        # the log-probabilities are those before that.
        wanted = {"logit_bias": [[letter, 1000.0]], "n_predict": 1}
        body = {"prompt": ids, "n_probs": 20, "cache_prompt": False, **wanted}
        (found,) = asked(server, "/completion", body)["completion_probabilities"]
        with torch.inference_mode():
            ours = model.logits(torch.tensor([ids]))[0, -1].double().log_softmax(-1)
        best, second = ours.topk(2).values.tolist()
        assert found["top_logprobs"][0]["id"] == int(ours.argmax()) or best - second < LLAMACPP_TIE
        for token in found["top_logprobs"]:
            assert abs(token["logprob"] - ours[token["id"]].item()) <= LLAMACPP_LOG_PROBABILITY


def bits_per_byte(gguf_model, rows, nbytes):
    """Of rows of ids, whose first id is only read."""
    total = 0.0
    for ids in rows:
        logits = torch.from_numpy(logits_of(gguf_model, ids)).double().log_softmax(-1)
        total -= logits[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
    return total / np.log(2) / nbytes


@pytest.mark.parametrize("name", ["16-heads-untied", "grouped"])
def test_blocks_of_8_bits_cost_less_than_a_hundredth_of_the_bits_per_byte(tmp_path, tokenizers, name):
    directory, encode = tokenizers[name]
    _, release, output = make_gguf(tmp_path, RELEASES[name], directory)
    texts = [document.text[:200] for document in read_documents(sample_corpus_path())][:20]
    rows, nbytes = [encode(text)[:LENGTH] for text in texts], sum(len(text.encode()) for text in texts)
    found = {"f32": bits_per_byte(open_gguf(output), rows, nbytes)}
    for type_ in ("f16", "q8_0", "q4_0"):
        convert_to_gguf(release, tmp_path / f"{type_}.gguf", type_=type_)
        found[type_] = bits_per_byte(open_gguf(tmp_path / f"{type_}.gguf"), rows, nbytes)
    print(found)
    assert abs(found["q8_0"] / found["f32"] - 1) <= Q8_0_BITS_PER_BYTE


@pytest.mark.parametrize("family", ["jais", "llama"])
def test_a_tokenizer_that_the_script_does_not_know_needs_no_change_of_llama_cpp(tmp_path, family):
    tokenizer = write_tokenizer(family, tmp_path / "tokenizer")
    section = {"jais": jais_section, "llama": llama_section}[family](
        vocab_size=VOCABULARY, max_position_embeddings=LENGTH
    )
    _, _, output = make_gguf(tmp_path, section, tokenizer)
    gguf_model = open_gguf(output)
    texts = [document.text[:300] for document in read_documents(sample_corpus_path())][:40]
    same = [
        gguf_model.tokenize(text.encode(), add_bos=False)
        == TOKENIZERS[family]().encode(text, add_special_tokens=False).ids
        for text in [*PROMPTS, *texts]
    ]
    print(sum(same), "of", len(same))
    assert all(same) if family == "jais" else sum(same) > len(same) / 2  # its merges are not all pairs: see the note


@pytest.mark.parametrize("name", ["12-heads", "untied"])
def test_its_server_answers_a_chat_in_arabic_with_the_template_inside(tmp_path, tokenizers, name):
    section = {**RELEASES[name], "max_position_embeddings": 512}
    _, _, output = make_gguf(tmp_path, section, tokenizers[name][0], chat=True)
    messages = [{"role": "user", "content": "ما هي عاصمة الإمارات؟"}]
    answer = asked(serve(output, context=1024), "/v1/chat/completions", {"messages": messages, "max_tokens": 8})
    assert answer["usage"]["completion_tokens"] >= 1
    assert answer["choices"][0]["message"]["role"] == "assistant"


def test_llama_cpps_own_cache_of_16_bits_moves_the_logits_little(tmp_path, gpt2_tokenizer):
    directory, encode = gpt2_tokenizer
    model, release, output = make_gguf(tmp_path, JAIS_RELEASES["12-heads"], directory)
    gguf_model = open_gguf(output, cache=llama_cpp.GGML_TYPE_F16)
    rows = [encode(text)[:LENGTH] for text in PROMPTS]
    for ids, (reference, _) in zip(rows, both_references(model, release, rows), strict=True):
        difference = np.abs(logits_of(gguf_model, ids) - reference).max()
        print(f"relative difference {difference / np.abs(reference).max():.1e}")
        assert difference <= LLAMACPP_LOGITS_HALF_CACHE * np.abs(reference).max()


@pytest.mark.parametrize(
    "change", [{"pos_scaling_factor": 2.0}, {"scale_qk_dot_by_d": False}], ids=["alibi-scaling", "scale-by-root-of-d"]
)
def test_what_llama_cpp_has_no_place_for_its_script_loses_and_we_refuse(tmp_path, gpt2_tokenizer, change):
    directory, encode = gpt2_tokenizer
    model, _, release = make_release(tmp_path, {**JAIS_RELEASES["12-heads"], **change}, directory)
    with pytest.raises(UserError, match="would compute other logits"):
        convert_to_gguf(release, tmp_path / "ours.gguf")
    output = by_script(release, tmp_path / "model.gguf")
    rows = [encode(PROMPTS[0])[:LENGTH]]
    ours, theirs = next(both_references(model, release, rows))
    lost = np.abs(logits_of(open_gguf(output), rows[0]) - ours).max() / np.abs(ours).max()
    kept = np.abs(theirs - ours).max() / np.abs(ours).max()
    assert kept <= LLAMACPP_LOGITS < 10 * LLAMACPP_LOGITS < lost


@pytest.mark.parametrize("family", ["jais", "adapted"])
def test_llama_cpps_own_jinja_renders_the_prompts_of_the_card(tmp_path, gpt2_tokenizer, llama2_tokenizer, family):
    if family == "jais":
        made = make_gguf(tmp_path, JAIS_RELEASES["12-heads"], gpt2_tokenizer[0], chat=True)
    else:
        made = make_gguf(tmp_path, ADAPTED_RELEASES["untied"], llama2_tokenizer[0], chat=True)
    assert open_gguf(made[-1]).metadata["tokenizer.chat_template"] == chat_template()
    server = serve(made[-1])
    for messages, keywords, expected in CASES.values():
        if keywords.get("add_generation_prompt", True):  # the server continues a response that ends a conversation
            body = {"messages": messages, "chat_template_kwargs": keywords}
            assert asked(server, "/apply-template", body)["prompt"] == expected
