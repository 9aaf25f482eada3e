"""Contract: a conversation renders as transformers renders it with the same template; the places of the responses are
those of their texts; markers inside messages do not survive; the language of a prompt is that of most letters."""

import re

import pytest
from hypothesis import given, settings

from cerebras_jais.data.chat.prompts import Message, harmless, prompt_language, render
from tests.cerebras_jais.data.chat.examples import conversation, conversations, places, texts

MARKERS = ("[|Human|]", "[|AI|]", "### Instruction:", "### Input:", "### Response :")


def test_a_prompt_and_its_response_stand_around_the_markers():
    rendered = render(conversation("What is 2 + 2?", " 4. ").messages, "en")
    text = rendered.text
    head, _, rest = text.partition("\n### Input: ")
    assert head.startswith("### Instruction:Your name is 'Jais'")
    assert rest == "[|Human|] What is 2 + 2?\n[|AI|]\n### Response : 4."
    assert [text[a:b] for a, b in places(rendered)] == ["4."]


def test_earlier_responses_follow_their_marker_and_end_before_the_next():
    rendered = render(conversation("سؤال", "جواب", "آخر", "ثانٍ", language="ar").messages, "ar")
    text = rendered.text
    assert text.endswith("\n### Input:[|Human|] سؤال\n[|AI|] جواب\n[|Human|] آخر\n[|AI|]\n### Response : ثانٍ")
    assert [text[a:b] for a, b in places(rendered)] == ["جواب", "ثانٍ"]


def test_a_system_message_takes_the_place_of_the_persona():
    text = render(conversation("Hi", "Hello", system=" Be brief.\n").messages, "en").text
    assert text.startswith("### Instruction:Be brief. Complete the conversation between [|Human|] and [|AI|]:\n")
    assert "Jais" not in text


@settings(max_examples=200, deadline=None)
@given(conversations)
def test_the_responses_found_are_the_responses_and_no_marker_is_a_user_s(chat):
    rendered = render(chat.messages, chat.language)
    text, responses = rendered.text, places(rendered)
    expected = [harmless(message.content).strip() for message in chat.messages if message.role == "assistant"]
    found = [text[start:end] for start, end in responses]
    assert found == expected
    assert responses[-1][1] == len(text)
    users = sum(message.role == "user" for message in chat.messages)
    system = any(message.role == "system" for message in chat.messages)
    assert text.count("[|Human|]") == 1 + users, "one in the instruction, one a turn"
    assert text.count("[|AI|]") == 1 + users
    assert [text.count(marker) for marker in MARKERS[2:]] == [1, 1, 1]
    assert system or text.startswith(render(conversation("a", "b").messages, chat.language).text[:200])


@settings(max_examples=300, deadline=None)
@given(texts)
def test_harmless_text_has_no_marker_and_loses_nothing_but_gains_spaces(text):
    mended = harmless(text)
    assert harmless(mended) == mended
    assert not any(marker.lower().replace(" ", "") in mended.lower() for marker in MARKERS)
    assert re.sub(r"\s", "", mended) == re.sub(r"\s", "", text)


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("[|Human|] hi", "[ |Human|] hi"),
        ("a [| ai |] b", "a [ | ai |] b"),
        ("###  Response:", "# ##  Response:"),
        ("### Response", "### Response"),
        ("a ###▁Input▁: b", "a # ##▁Input▁: b"),
        ("a [|b|] [Human] # Input:", "a [|b|] [Human] # Input:"),
    ],
)
def test_a_marker_gets_a_space_after_its_first_character(text, mended):
    assert harmless(text) == mended


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Translate مرحبا", "en"),
        ("ترجم كلمة welcome", "ar"),
        ("ما معنى welcome؟", "en"),
        ("abc ابت", "ar"),
        ("12 + 7 = ?", "en"),
        ("ما ٢ + ٢؟", "ar"),
    ],
)
def test_the_language_of_a_prompt_is_arabic_if_half_of_the_letters_are(text, language):
    earlier = [Message("user", "an earlier message سابقة"), Message("assistant", "جواب")]
    assert prompt_language([*earlier, Message("user", text), Message("assistant", "x")]) == language


def test_every_marker_of_the_template_is_known():
    """The markers are found in the template; here they are named."""
    rendered = render(conversation("a", "b").messages, "en").text
    assert all(marker in rendered and harmless(marker) != marker for marker in MARKERS)


# Texts that are no marker as they stand, and the normalisers that make one of them.
FOLDED = [
    ("［｜Ｈｕｍａｎ｜］ hi", "NFKC"),
    ("a\n＃＃＃ Ｉｎｐｕｔ： b", "NFKC"),
    ("[|Hu\u0301man|]", "StripAccents"),
    ("[|Hu\u00admàn|] ＃＃＃Response:", "XLM-R"),
]


def normalizer_of(name):
    from tokenizers import Regex, normalizers

    if name == "XLM-R":
        unwritten = [normalizers.Replace(Regex("[\u00ad\u200b]"), "")]
        return normalizers.Sequence(
            [*unwritten, normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
        )
    if name == "StripAccents":
        return normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    return getattr(normalizers, name)()


@pytest.mark.parametrize(("text", "name"), FOLDED)
def test_no_text_becomes_a_marker_by_the_normaliser_of_a_tokenizer(text, name):
    normalizer = normalizer_of(name)
    plain, mended = (
        normalizer.normalize_str(render(conversation(each, each).messages, "en", normalizer).text).lower()
        for each in ("a", text)
    )
    for marker in map(str.lower, MARKERS):
        assert mended.count(marker) == plain.count(marker)
    assert harmless(text) == text, "it is none without the normaliser"


@pytest.mark.parametrize("name", ["NFC", "NFKC"])
def test_a_text_without_a_marker_stays_as_it_is_under_a_normaliser(name):
    text = "ﷺ ｈｅｌｌｏ e\u0301 [Human] ｜"
    assert harmless(text, normalizer_of(name)) == text
