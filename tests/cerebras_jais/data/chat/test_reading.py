"""Contract: the four forms give the same conversation; what is none is refused in one line that names file and line,
and left out where that was asked for, all other lines being read."""

import codecs
import json
from collections import Counter

import pytest

from cerebras_jais.data.chat.reading import read_conversations, sample_conversations_path
from cerebras_jais.data.documents import DataError

QUESTION, ANSWER = "ما عاصمة عُمان؟", "مسقط."


def written(path, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def read(path, **options):
    return list(read_conversations(path, **options))


@pytest.mark.parametrize(
    "line",
    [
        {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]},
        {"prompt": QUESTION, "response": ANSWER},
        {"id": "a1", "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
        {"conversations": [{"from": "user", "value": QUESTION}, {"from": "assistant", "value": ANSWER}]},
        {"instruction": QUESTION, "output": ANSWER},
        {"instruction": QUESTION, "input": " ", "output": ANSWER},
    ],
)
def test_the_forms_give_the_same_conversation(tmp_path, line):
    (chat,) = read(written(tmp_path / "a.jsonl", line))
    assert chat.messages == (("user", QUESTION), ("assistant", ANSWER))
    assert chat.language == "ar"
    assert chat.place == chat.source == f"{tmp_path}/a.jsonl:1"
    (chat,) = read(written(tmp_path / "a.jsonl", "", {**line, "system": "Be brief.", "language": "en", "source": "x"}))
    assert chat.messages == (("system", "Be brief."), ("user", QUESTION), ("assistant", ANSWER))
    assert (chat.language, chat.source, chat.place) == ("en", "x", f"{tmp_path}/a.jsonl:2")


def test_an_alpaca_input_follows_its_instruction(tmp_path):
    (chat,) = read(written(tmp_path / "a.jsonl", {"instruction": "Translate.", "input": "مرحبا", "output": "Hello"}))
    assert chat.messages[0].content == "Translate.\n\nمرحبا"
    assert chat.language == "en"


def test_several_turns_with_a_system_message_of_the_form_itself(tmp_path):
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    turns += [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]
    (chat,) = read(written(tmp_path / "a.jsonl", {"conversations": turns}))
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_the_text_parts_of_a_message_are_its_lines(tmp_path):
    parts = [{"type": "text", "text": "ما عاصمة"}, {"type": "text", "text": "عُمان؟", "cache_control": {}}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
    ]
    (chat,) = read(written(tmp_path / "a.jsonl", {"messages": messages}), ignored=["cache_control"])
    assert chat.messages == (("user", "ما عاصمة\nعُمان؟"), ("assistant", ANSWER))


GOOD = {"prompt": "a", "response": "b"}
USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def with_parts(*parts):
    return {"messages": [{"role": "user", "content": parts}, ASSISTANT]}


MALFORMED = {
    "no response": ({"prompt": "a"}, 'no response: the field "response" is missing'),
    "no output": ({"instruction": "a"}, 'no response: the field "output" is missing'),
    "last of the user": ({"messages": [USER, ASSISTANT, USER]}, "no response: the last message is of the user"),
    "only a system message": ({"messages": [{"role": "system", "content": "a"}]}, "no response"),
    "too many messages": ({"messages": [USER, ASSISTANT] * 5001}, "has 10002 messages, more than 10000"),
    "a key twice": ('{"prompt": "a", "response": "b", "response": "c"}', "has the key 'response' twice"),
    "a key twice in a turn": (
        '{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "b"}]}',
        "has the key 'content' twice",
    ),
    "empty turn": ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, '[1]: the field "content" is empty'),
    "empty response": ({"prompt": "a", "response": ""}, 'the field "response" is empty'),
    "no part": (with_parts(), 'messages[0]: the field "content" is empty'),
    "empty part": (with_parts({"type": "text", "text": ""}), 'messages[0].content[0]: the field "text" is empty'),
    "a picture": (
        with_parts({"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "b"}}),
        "messages[0].content[1]: only parts of text can be read, got type 'image_url'; write what it says as",
    ),
    "a part of another type": (with_parts("a"), "messages[0].content[0]: must be an object such as"),
    "unknown field of a part": (
        with_parts({"type": "text", "text": "a", "note": "b"}),
        "messages[0].content[0]: unknown field 'note'",
    ),
    "roles out of order": ({"messages": [ASSISTANT, USER]}, "roles out of order: message 1 is of the assistant"),
    "two of the user": ({"messages": [USER, USER, ASSISTANT]}, "roles out of order: message 2 is of the user"),
    "system later": ({"messages": [USER, {"role": "system", "content": "a"}]}, "message 2 is of the system"),
    "two system messages": ({"messages": [{"role": "system", "content": "a"}, USER, ASSISTANT], "system": "b"}, "too"),
    "unknown role": ({"messages": [{"role": "tool", "content": "a"}]}, "\"role\" is 'tool'; known: system, user"),
    "unknown field": ({**GOOD, "sytem": "x"}, "unknown field 'sytem'; did you mean 'system'?"),
    "unknown field of a message": ({"messages": [{**USER, "name": "x"}]}, "messages[0]: unknown field 'name'"),
    "two forms": ({**GOOD, "messages": [USER, ASSISTANT]}, "unknown field 'prompt'"),
    "no form": ({"text": "a"}, "has none of the fields messages, conversations, prompt, instruction"),
    "no list": ({"messages": "a"}, '"messages" must be a list of messages'),
    "empty list": ({"messages": []}, '"messages" must be a list of messages'),
    "no object in the list": ({"messages": ["a"]}, "messages[0] must be an object"),
    "number": ({"prompt": 3, "response": "b"}, 'the field "prompt" must be a text, got 3'),
    "other language": ({**GOOD, "language": "fr"}, "language 'fr': the prompts are in"),
    "language of another type": ({**GOOD, "language": ["ar"]}, "language ['ar']"),
    "broken JSON": ('{"prompt": ', "not valid JSON"),
    "a list of JSON": ("[1]", "expected an object such as"),
    "deep JSON": ('{"prompt": ' + "[" * 100_000, "nested too deeply"),
    "long number": ('{"prompt": ' + "9" * 5000 + "}", "not valid JSON"),
    "lone surrogate": ('{"prompt": "\\ud800", "response": "b"}', "half of a character"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_line_is_named_and_by_option_counted(tmp_path, name):
    line, words = MALFORMED[name]
    path = written(tmp_path / "a.jsonl", GOOD, line, GOOD)
    with pytest.raises(DataError) as refused:
        read(path)
    assert str(refused.value).startswith(f"{path}:2: ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    found = []
    assert len(read(path, malformed=found.append)) == 2
    assert [str(error) for error in found] == [str(refused.value)]


def test_bytes_that_are_no_text_and_lines_without_end_are_counted_too(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(
        b"\n".join([good, b'{"prompt": "\xff"}', b"x" * 13_000_000, good, b'{"prompt": "' + good * 200_000])
    )
    found = []
    assert len(read(path, malformed=found.append)) == 2
    assert [str(error).split(":")[1] for error in found] == ["2", "3", "5"]
    assert [word in str(error) for error, word in zip(found, ["UTF-8", "MiB", "JSON"], strict=True)] == [True] * 3


def test_ignored_fields_are_passed_over(tmp_path):
    path = written(tmp_path / "a.jsonl", {**GOOD, "score": 3, "topic": {"a": 1}})
    assert read(path, ignored=("score", "topic"))[0].messages[1].content == "b"
    with pytest.raises(DataError, match=r"unknown field 'topic'; .*--ignore 'topic'"):
        read(path, ignored=("score",))


def test_a_known_field_is_passed_over_where_that_is_asked_for(tmp_path):
    others = {"language": "Arabic", "system": ["x"], "source": 7}
    path = written(tmp_path / "a.jsonl", {**GOOD, **others})
    assert read(path, ignored=[*others]) == read(written(path, GOOD))
    assert read(path, ignored=["prompt"]) == read(path), "what a form is made of stays"


def test_a_file_that_is_not_there_is_refused_even_where_lines_are_left_out(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.jsonl", malformed=lambda error: None)


def test_a_file_that_is_one_list_is_refused_with_the_command_that_cuts_it(tmp_path):
    path = written(tmp_path / "a.json", json.dumps([GOOD, GOOD], indent=1))
    marked = tmp_path / "b.json"
    marked.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    for file in (path, marked):
        with pytest.raises(DataError, match=r"is one list of JSON; write one object to a line: jq -c '\.\[\]'"):
            read(file, malformed=lambda error: None)


def test_the_sample_has_twenty_conversations_of_each_language_single_and_of_several_turns():
    chats = read(sample_conversations_path())
    assert Counter(chat.language for chat in chats) == {"ar": 20, "en": 20}
    turns = Counter((chat.language, sum(m.role == "user" for m in chat.messages) > 1) for chat in chats)
    assert min(turns.values()) >= 5
    assert len({chat.messages for chat in chats}) == 40
