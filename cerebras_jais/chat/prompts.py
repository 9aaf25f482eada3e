"""Messages as the prompt that a chat model reads: by the template of its release, or by the catalog's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cerebras_jais.catalog.chat import chat_template
from cerebras_jais.data.chat.prompts import LANGUAGES, harmless
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, read_text
from cerebras_jais.ranges import shown
from checkpoint_convert.formats.json_files import read_json
from checkpoint_convert.formats.release_directory import CHAT_TEMPLATE, TOKENIZER_CONFIG

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer

ROLES = ("system", "user", "assistant")
_LONGEST_PROMPT = 4 * MIB  # characters


def release_template(release: Path) -> str:
    """The chat template of a release: its own file, the one in tokenizer_config.json, or else the catalog's."""
    if (release / CHAT_TEMPLATE).is_file():
        return read_text(release / CHAT_TEMPLATE, MIB)
    if (release / TOKENIZER_CONFIG).is_file():
        found = read_json(release / TOKENIZER_CONFIG).get("chat_template")
        if isinstance(found, str):
            return found
        if isinstance(found, list):  # several, each with a name
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, Mapping)}
            if isinstance(named.get("default"), str):
                return str(named["default"])
    return chat_template()


def chat_prompt(
    messages: Sequence[Mapping[str, Any]],
    language: str | None = None,
    *,
    template: str | None = None,
    normalizer: Normalizer | None = None,
    special_tokens: Mapping[str, str] | None = None,
) -> str:
    """The prompt of a conversation, which the answer follows.

    Markers of roles and sections in the messages, such as "[|AI|]" and "### Response :", are made harmless.

    Args:
        messages: with `role` ("system", "user", "assistant") and `content`.
        language: of the prompt, "ar" or "en"; None lets the template decide.
        template: Jinja; None is the catalog's. It runs in a sandbox.
        normalizer: of the tokenizer that reads the prompt.
        special_tokens: what the template may write by name, such as `bos_token`.

    Raises:
        UserError: no conversation, an unknown role or language, a template that is damaged or refuses the messages.
    """
    from jinja2.exceptions import TemplateError

    if language is not None and language not in LANGUAGES:
        raise UserError(f'language {shown(language)}: the prompts are in "ar" and "en"; give one, or none')
    turns = []
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UserError(f"messages[{number}]: role is {shown(role)}; known: {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise UserError(f"messages[{number}]: content must be a text that is not empty (got {shown(content)})")
        turns.append({"role": role, "content": harmless(content, normalizer)})
    if not turns or turns[-1]["role"] != "user":
        raise UserError("messages: the last one must be the user's, to be answered")
    values = {"eos_token": "", "bos_token": "", **(special_tokens or {})}
    if language is not None:
        values["language"] = language
    try:
        parts = []
        size = 0
        for part in (
            _environment()
            .from_string(template or chat_template())
            .generate(messages=turns, add_generation_prompt=True, **values)
        ):
            size += len(part)
            if size > _LONGEST_PROMPT:
                raise UserError(f"chat template: writes more than {_LONGEST_PROMPT:,} characters; shorten the messages")
            parts.append(part)
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, OverflowError, RecursionError) as error:
        raise UserError(f"chat template: {str(error) or type(error).__name__}") from error
    return "".join(parts)


def _environment() -> Any:
    """A sandbox with the settings and the additions of transformers' own environment."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    return environment
