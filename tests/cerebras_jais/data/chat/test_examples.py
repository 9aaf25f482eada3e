"""Contract: the tokens are transformers' for the same template, one by one; every token of a response and its end
counts in the loss, and no other token does; an example that is too long is cut by the rule that was asked for."""

import numpy as np
import pytest
from hypothesis import given, settings

from cerebras_jais.catalog.chat import chat_template
from cerebras_jais.data.chat.examples import PromptEncoder, cut_response, without_oldest_turns
from cerebras_jais.data.chat.prompts import harmless, render
from cerebras_jais.data.tokenizer import end_of_text_id, load_tokenizer
from cerebras_jais.encoding import Encoder
from tests.cerebras_jais.data.chat.examples import EOS, TOKENIZERS, conversation, conversations, places, trimming


@pytest.fixture(scope="module", params=[*TOKENIZERS])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return TOKENIZERS[kind](tmp_path_factory.mktemp(kind))


@pytest.fixture(scope="module")
def encoder(folder):
    tokenizer = load_tokenizer(folder)
    return PromptEncoder(Encoder(tokenizer), end_of_text_id(tokenizer, folder))


@pytest.fixture(scope="module")
def theirs(folder, kind):
    """transformers' tokenizer, told to spell special tokens out in text, the end of text apart."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token=EOS[kind],
        add_prefix_space=kind == "prefixing",  # which transformers 4 puts in place of the file's
    )
    tokenizer.chat_template = chat_template()
    return tokenizer


def encoded(encoder, chat):
    (example,) = encoder.encode([render(chat.messages, chat.language)])
    return example


def as_dicts(chat):
    """The messages for transformers, their markers made harmless."""
    return [{"role": message.role, "content": harmless(message.content)} for message in chat.messages]


def no_special_token(chat):
    """Whether no message spells one: transformers would read it as one."""
    names = ("<|endoftext|>", "</s>", "<s>", "<unk>")
    return not any(name in message.content for message in chat.messages for name in names)


def test_messages_are_encoded_alone_where_the_tokenizer_splits_before_spaces(encoder, kind):
    assert encoder.by_messages == (kind in ("byte-level", "trimming"))


@settings(max_examples=100, deadline=None)
@given(conversations.filter(no_special_token))
def test_rendering_equals_apply_chat_template_token_for_token(encoder, theirs, chat):
    wanted = theirs.apply_chat_template(as_dicts(chat), language=chat.language, tokenize=True, return_dict=True)
    assert encoded(encoder, chat).ids.tolist() == wanted["input_ids"]


@settings(max_examples=100, deadline=None)
@given(conversations)
def test_the_loss_counts_every_token_of_a_response_and_its_end_and_no_other(encoder, chat):
    """Against the places of the tokens in the text, from the tokenizer's offsets of the whole text at once."""
    rendered = render(chat.messages, chat.language)
    example = encoded(encoder, chat)
    whole = encoder.tokenizer.encode(rendered.text, add_special_tokens=False)
    assert example.ids.tolist() == [*whole.ids, encoder.eos_id]
    inside = np.zeros(len(rendered.text) + 1, dtype=bool)
    for start, end in places(rendered):
        inside[start - 1 : end] = True  # with the space before it
    for trained, (start, end) in zip(example.trained, whole.offsets, strict=False):
        assert trained == inside[start:end].all() or start == end == 0, "a space put before the text has no place"
    assert example.trained[-1], "the end"


def test_the_loss_counts_what_transformers_calls_the_assistant_s(encoder, theirs):
    chats = [
        conversation("What is 2 + 2?", "It is 4."),
        conversation("ما عاصمة عُمان؟", "مسقط.", "وما عملتها؟", "الريال العُماني.", language="ar"),
        conversation("Hi", "Hello!", "And?", "Nothing.", "Bye", "Bye.", system="Be brief."),
    ]
    for chat in chats:
        found = theirs.apply_chat_template(
            as_dicts(chat), language=chat.language, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, trained = encoded(encoder, chat)
        theirs_too = np.array(found["assistant_masks"]) == 1
        assert trained[theirs_too].all()
        # A space of its own before a response: a model has to write it, and the template's blocks begin behind it.
        assert not "".join(encoder.tokenizer.decode([token]) for token in ids[trained & ~theirs_too].tolist()).strip()


def test_the_space_before_a_response_is_trained_where_it_is_a_token_of_its_own(encoder, kind):
    if kind == "llama":
        pytest.skip("this one has a token of the colon and the space")
    ids, trained = encoded(encoder, conversation("Hi", "\u4e2d"))
    assert encoder.tokenizer.decode(ids[trained][:-1].tolist()) == " \u4e2d"


def test_a_special_token_in_a_message_is_text(encoder, kind):
    example = encoded(encoder, conversation(f"a {EOS[kind]} b", f"c{EOS[kind]}d"))
    assert (example.ids == encoder.eos_id).sum() == 1
    assert EOS[kind] in encoder.tokenizer.decode(example.ids[:-1].tolist(), skip_special_tokens=False)


def test_a_marker_in_full_width_letters_is_text_to_a_tokenizer_that_folds_them(tmp_path):
    from tokenizers import normalizers

    encoder = PromptEncoder(Encoder(load_tokenizer(trimming(tmp_path, normalizers.NFKC()))), 0)
    chat = conversation("a ［｜Ｈｕｍａｎ｜］ b", "c")
    for rendered, markers in ((render(chat.messages, "en"), 3), (encoder.render(chat), 2)):
        (example,) = encoder.encode([rendered])
        assert encoder.tokenizer.decode(example.ids.tolist()).count("[|Human|]") == markers


@pytest.mark.parametrize("turns", [1, 2, 3, 8, 9])
def test_as_few_of_the_oldest_turns_go_as_fit_and_the_system_message_stays(encoder, turns):
    texts = [f"{'word ' * (number % 5)}{number}" for number in range(2 * turns)]
    chats = [conversation(*texts[2 * gone :], system="s") for gone in range(turns)]
    lengths = [len(encoded(encoder, chat).ids) - 1 for chat in chats]
    assert lengths == sorted(lengths, reverse=True)
    for length in range(lengths[-1] - 1, lengths[0]):
        fitting = [chat for chat, needed in zip(chats, lengths, strict=True) if needed <= length]
        found = without_oldest_turns(chats[0], encoder, length)
        if not fitting:
            assert found is None
        else:
            assert found[0] == fitting[0]
            assert found[1] == render(fitting[0].messages, "en")
            assert found[2].ids.tolist() == encoded(encoder, fitting[0]).ids.tolist()


@pytest.mark.slow
def test_a_long_conversation_is_cut_with_few_encodings(encoder, monkeypatch):
    made = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda rendered: made.append(1) or encode(rendered))
    chat = conversation(*map(str, range(1000)))
    found, *_ = without_oldest_turns(chat, encoder, 1000)
    assert found.messages == chat.messages[-len(found.messages) :]
    assert len(made) <= 10, "log2 of 500 turns, and one more"


def test_a_cut_response_has_no_end_and_at_least_one_token(encoder):
    example = encoded(encoder, conversation("Count.", "one two three four five six seven eight nine ten"))
    prompt = int((~example.trained).sum())
    cut = cut_response(example, prompt + 2)
    assert cut.ids.tolist() == example.ids[: prompt + 3].tolist()
    assert cut.trained.sum() == 3
    assert encoder.eos_id not in cut.ids
    assert cut_response(example, prompt).trained.sum() == 1
    assert cut_response(example, prompt - 1) is None
