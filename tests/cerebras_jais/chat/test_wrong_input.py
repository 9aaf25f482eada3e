"""What does not fit is said in one line by each verb that answers, before weights are read where that can be known.

Contract: `generate` (alone, with a template, for a file), `chat` and `serve` refuse a tokenizer with more ids than the
model has rows, another model's tokenizer, and a model that is larger than the free memory: its weights in the type that
is asked for, and the keys and values of its context. The verbs that make prompts refuse a base model asked to chat, and
a prompt longer than rotary positions reach. An answer ends where those end.
"""

import json

import pytest
import torch
from tokenizers import Tokenizer

from cerebras_jais.chat import checks, engine
from cerebras_jais.chat.checks import cache_bytes, check_memory
from cerebras_jais.chat.engine import open_engine
from cerebras_jais.chat.forward import Cache
from cerebras_jais.chat.sampling import Sampling
from cerebras_jais.data.tokenizer import save_tokenizer
from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from checkpoint_convert.convert import convert_to_hf
from tests.cerebras_jais.chat.test_chat_command import run
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.chat_tokenizers import TOKENIZERS, VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint

CONTEXT = 64
VERBS = ("generate", "generate --chat", "generate --batch", "chat", "serve")
CHATTING = ("generate --chat", "generate --chat --batch", "chat")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Chat releases and a base release of random weights, a checkpoint, and tokenizers, by name."""
    folder = tmp_path_factory.mktemp("models")
    found = {family: write_tokenizer(family, folder / f"{family}-tokenizer") for family in TOKENIZERS}
    found = {f"{family}-tokenizer": path for family, path in found.items()}
    for name, section in (
        ("jais", jais_section(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT)),
        ("llama", llama_section(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT)),
        ("small", jais_section(vocab_size=97)),
    ):
        found[f"{name}.mdl"] = write_checkpoint(folder / f"{name}.mdl", section, state_of(random_model(section)))
        for kind, chats in (("chat", True), ("base", False)):
            found[f"{name}-{kind}"] = folder / f"{name}-{kind}"
            tokenizer = None if name == "small" else found[f"{name}-tokenizer"]
            convert_to_hf(found[f"{name}.mdl"], found[f"{name}-{kind}"], tokenizer=tokenizer, chat=chats)
    return found


def refused(verb, model, folder, *options, prompt="x"):
    """The line that a verb refuses a model, a tokenizer or a prompt with."""
    words, lines = [*verb.split(), str(model), *map(str, options)], []
    if "--batch" in words:
        words.remove("--batch")
        (folder / "prompts.jsonl").write_text(json.dumps({"prompt": prompt}) + "\n")
        words += ["--batch", folder / "prompts.jsonl", "--output", folder / "answers.jsonl"]
    elif "generate" in words:
        words += ["--prompt", prompt]
    elif "serve" in words:
        words += ["--port", 0]
    else:
        lines = [prompt]
    with pytest.raises(UserError) as error:
        run(*words, lines=lines)
    assert "\n" not in str(error.value) and error.value.status == 2
    assert not (folder / "answers.jsonl").exists()
    return str(error.value)


@pytest.fixture
def unread(monkeypatch):
    """A test in which reading weights is a failure."""

    def read(*arguments, **options):
        raise AssertionError("the weights were read")

    monkeypatch.setattr(engine, "load_release", read)
    monkeypatch.setattr(engine, "load_model", read)


@pytest.mark.parametrize("verb", VERBS)
def test_a_tokenizer_with_more_ids_than_the_model_has_rows(models, tmp_path, unread, verb):
    for model in ("small-chat", "small.mdl"):
        said = refused(verb, models[model], tmp_path, "--tokenizer", models["jais-tokenizer"])
        assert "its ids go up to 399 but the model's vocab_size is 97" in said and "give the model's own" in said


@pytest.mark.parametrize("verb", VERBS)
def test_another_models_tokenizer(models, tmp_path, unread, verb):
    said = refused(verb, models["llama-chat"], tmp_path, "--tokenizer", models["jais-tokenizer"])
    assert said.startswith(f"{models['jais-tokenizer']}: the token ") and "leave --tokenizer out" in said


def test_a_releases_own_tokenizer_may_be_given_from_elsewhere(models):
    tokenizer = models["jais-tokenizer"]
    assert open_engine(models["jais-chat"], tokenizer=tokenizer).encode("x") == open_engine(models["jais-chat"]).encode(
        "x"
    )


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("model", ["jais-chat", "llama.mdl"])
def test_a_model_that_does_not_fit_into_memory(models, tmp_path, unread, monkeypatch, verb, model):
    monkeypatch.setattr(checks, "available_memory", lambda: 100_000)
    tokenizer = ["--tokenizer", models["llama-tokenizer"]] if model.endswith(".mdl") else []
    said = refused(verb, models[model], tmp_path, *tokenizer)
    assert said.startswith(f"{models[model]}: takes 0.0 GB of memory") and "and 0.0 GB are free; end other" in said


@pytest.mark.parametrize("section", [jais_section, llama_section])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("context", [CONTEXT, 100 * CONTEXT])
def test_memory_is_that_of_the_weights_in_their_type_with_one_as_it_is_read_or_the_cache(
    section, dtype, context, monkeypatch
):
    """Against the tensors themselves: one byte less than they take is too little."""
    config = DecoderConfig.from_section(section(vocab_size=VOCABULARY, max_position_embeddings=context))
    cache = Cache(config, 1, context, torch.empty(0))
    held = sum(tensor.nbytes for tensor in vars(cache).values() if isinstance(tensor, torch.Tensor))
    assert cache_bytes(config, context) == held
    # The engine keeps a tied head beside the embedding, each in the layout that it is read in.
    sizes = [parameter.numel() for _, parameter in LanguageModel(config).named_parameters(remove_duplicate=False)]
    assert (held > 4 * max(sizes)) == (context > CONTEXT)
    needed = dtype.itemsize * sum(sizes) + max(held, 4 * max(sizes))
    monkeypatch.setattr(checks, "available_memory", lambda: needed)
    check_memory("m", config, dtype)
    monkeypatch.setattr(checks, "available_memory", lambda: needed - 1)
    with pytest.raises(UserError, match=f"with its context of {context:,} tokens"):
        check_memory("m", config, dtype)


@pytest.mark.parametrize("verb", CHATTING)
@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_base_model_asked_to_chat(models, tmp_path, verb, family):
    said = refused(verb, models[f"{family}-base"], tmp_path)
    assert "is a base model, which continues text; to chat give one tuned on conversations" in said


@pytest.mark.parametrize("verb", ["generate", "generate --batch", *CHATTING])
def test_a_prompt_longer_than_rotary_positions_reach(models, tmp_path, verb):
    said = refused(verb, models["llama-chat"], tmp_path, prompt="كلمة " * CONTEXT)
    assert f"llama-chat was trained with {CONTEXT}, beyond which its rotary positions are unknown; shorten it" in said


@pytest.mark.parametrize(("family", "length"), [("llama", CONTEXT - 60), ("jais", 80)])
def test_an_answer_ends_where_rotary_positions_do_and_runs_on_with_alibi(models, family, length):
    opened = open_engine(models[f"{family}-base"])
    opened.eos = ()
    done = opened.complete([[5] * 60, [5] * 9], [Sampling(max_new_tokens=80), Sampling(max_new_tokens=3)])
    assert [len(each.token_ids) for each in done] == [length, 3] and done[0].finish_reason == "length"
    full = opened.complete([[5] * CONTEXT], [Sampling(max_new_tokens=1)])[0]
    assert len(full.token_ids) == 1


def test_a_tokenizer_without_an_end_of_text(models, tmp_path):
    state = json.loads(TOKENIZERS["jais"]().to_str().replace("<|endoftext|>", "<|end|>"))
    save_tokenizer(Tokenizer.from_str(json.dumps(state)), tmp_path / "t", 64)
    config = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "</s>"}))
    said = refused("generate", models["jais.mdl"], tmp_path, "--tokenizer", tmp_path / "t")
    assert "no end-of-text token (</s>) in the vocabulary" in said
