"""The chat template renders the card's prompts, in transformers and in llama.cpp's own Jinja engine.

Contract: a question in Arabic or English gives the card's prompt byte for byte; further turns, a system message and a
chosen language have one form each; a conversation that ends in a response is its prompt, the response and the end of
text; the assistant mask covers the responses and that end, and nothing else.
"""

import itertools
import json

import pytest

from cerebras_jais.catalog.chat import chat_template
from cerebras_jais.data.clean.languages import detect_language
from cerebras_jais.data.documents import sample_corpus_path
from tests.card import PROMPTS, prompt
from tests.chat_tokenizers import EOS, TOKENIZERS

transformers = pytest.importorskip("transformers")

ARABIC, ENGLISH = "ما هي عاصمة الامارات؟", "What is the capital of UAE?"
ANSWER = "\n[|AI|]\n### Response :"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def before_answer(language, question):
    """The card's prompt without its last lines, which a turn of the assistant replaces."""
    return prompt(language, question).removesuffix(ANSWER)


# Name -> (messages, keywords, what they become).
CASES = {
    "arabic": ([user(ARABIC)], {}, prompt("ar", ARABIC)),
    "english": ([user(ENGLISH)], {}, prompt("en", ENGLISH)),
    "fewer_arabic_letters": ([user("Translate مرحبا")], {}, prompt("en", "Translate مرحبا")),
    "half_arabic_letters": ([user("Word كلمة")], {}, prompt("ar", "Word كلمة")),
    "rare_letters": ([user("شخص")], {}, prompt("ar", "شخص")),
    "persian_letters": ([user("گپ")], {}, prompt("ar", "گپ")),
    "english_by_choice": ([user(ARABIC)], {"language": "en"}, prompt("en", ARABIC)),
    "arabic_by_choice": ([user("2 + 2")], {"language": "ar"}, prompt("ar", "2 + 2")),
    "neither_alphabet": ([user("2 + 2 = ?")], {}, prompt("en", "2 + 2 = ?")),
    "spaces_around_a_system_message": (
        [system(" You are a tour guide.\n"), user(ENGLISH)],
        {},
        "### Instruction:You are a tour guide. Complete the conversation between [|Human|] and [|AI|]:"
        f"\n### Input: [|Human|] {ENGLISH}{ANSWER}",
    ),
    "spaces_around": ([user(f"  {ENGLISH}\n")], {}, prompt("en", ENGLISH)),
    "lines_and_quotes": (
        [user('Who\'s "Jais"?\n\n1. {x}')],
        {},
        PROMPTS["en"].replace("{Question}", 'Who\'s "Jais"?\n\n1. {x}'),
    ),
    "turns": (
        [user(ENGLISH), assistant("Abu Dhabi."), user("And of Egypt?")],
        {},
        f"{before_answer('en', ENGLISH)}\n[|AI|] Abu Dhabi.\n[|Human|] And of Egypt?{ANSWER}",
    ),
    "the_last_question_decides": (
        [user(ENGLISH), assistant("Abu Dhabi."), user("وعاصمة مصر؟")],
        {},
        f"{before_answer('ar', ENGLISH)}\n[|AI|] Abu Dhabi.\n[|Human|] وعاصمة مصر؟{ANSWER}",
    ),
    "system": (
        [system("You are a tour guide."), user(ENGLISH)],
        {},
        "### Instruction:You are a tour guide. Complete the conversation between [|Human|] and [|AI|]:"
        f"\n### Input: [|Human|] {ENGLISH}{ANSWER}",
    ),
    "arabic_system": (
        [system("أنت مرشد سياحي."), user(ARABIC)],
        {},
        f"### Instruction:أنت مرشد سياحي. أكمل المحادثة بين [|Human|] و[|AI|] :\n### Input:[|Human|] {ARABIC}{ANSWER}",
    ),
    "answered": (
        [user(ARABIC), assistant("أبو ظبي.")],
        {"add_generation_prompt": False},
        f"{prompt('ar', ARABIC)} أبو ظبي.{EOS}",
    ),
    "answered_turns": (
        [user(ENGLISH), assistant(" Abu Dhabi. "), user("And of Egypt?"), assistant("Cairo.")],
        {"add_generation_prompt": False},
        f"{before_answer('en', ENGLISH)}\n[|AI|] Abu Dhabi.\n[|Human|] And of Egypt?{ANSWER} Cairo.{EOS}",
    ),
}
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    """A tokenizer of either family, with the template."""
    loaded = transformers.PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[request.param](), eos_token=EOS)
    loaded.chat_template = chat_template()
    return loaded


@every_case
def test_transformers_renders_a_conversation(tokenizer, case):
    messages, keywords, expected = CASES[case]
    text = tokenizer.apply_chat_template(messages, tokenize=False, **{"add_generation_prompt": True, **keywords})
    assert text == expected


def test_a_prompt_without_a_language_is_in_the_one_of_the_training_data(tokenizer):
    questions = [
        line for path in sorted(sample_corpus_path().glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    questions = [json.loads(line)["text"][:80] for line in questions]
    questions += [f"{first[:cut]} {second[:20]}" for first, second in itertools.pairwise(questions) for cut in (5, 20)]
    for question in questions:
        text = tokenizer.apply_chat_template([user(question)], tokenize=False, add_generation_prompt=True)
        assert text == prompt(detect_language(question), question.strip()), question
    assert {detect_language(question) for question in questions} == {"ar", "en"}


@pytest.mark.parametrize("case", ["answered", "answered_turns"])
def test_the_assistant_mask_covers_the_responses_and_their_end(tokenizer, case):
    messages, _, expected = CASES[case]
    found = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = found["input_ids"], found["assistant_masks"]
    assert ids == tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    masked = tokenizer.decode([number for number, covered in zip(ids, mask, strict=True) if covered])
    responses = [message["content"] for message in messages if message["role"] == "assistant"]
    # A space before a response is covered only where it is one token with what follows.
    assert "".join(masked.split()) == "".join(f"{''.join(responses)}{EOS}".split())


@pytest.mark.parametrize(
    "messages",
    [
        [assistant("Hello.")],
        [user("a"), user("b")],
        [user("a"), assistant("b"), assistant("c")],
        [user("a"), system("b")],
    ],
    ids=["assistant_first", "user_twice", "assistant_twice", "system_later"],
)
def test_roles_out_of_order_are_refused(tokenizer, messages):
    with pytest.raises(Exception, match="roles must alternate"):
        tokenizer.apply_chat_template(messages, tokenize=False)
