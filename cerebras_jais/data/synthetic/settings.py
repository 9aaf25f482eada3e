"""The YAML of `data rewrite`, typed: every key is known, and any other is an error that names its line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cerebras_jais.config.base import Section, refuse, within
from cerebras_jais.data.recipe.settings import InputPath, Source, Tag, read_section
from cerebras_jais.endpoint.asking import RESERVED
from cerebras_jais.endpoint.client import Endpoint, EndpointError, key_from
from cerebras_jais.ranges import Range

TEXT = "{text}"
"""What stands in a prompt for the document."""
TRANSLATION = (
    "Translate the following English text into Modern Standard Arabic. Keep its meaning, its paragraphs and its "
    "numbers, leave nothing out and add nothing. Answer with the translation alone.\n\n" + TEXT
)


class Service(Section):
    """The endpoint, and how it is asked."""

    url: str
    """What stands before /chat/completions."""
    model: str
    key_variable: str | None = None
    """The environment variable that holds the key; nothing secret is in the YAML."""
    concurrency: Annotated[int, within(Range(1, 1024, whole=True))] = 8
    timeout: Annotated[float, within(Range(1, 86_400))] = 600.0
    tries: Annotated[int, within(Range(1, 100, whole=True))] = 8
    options: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0})
    """Further keys of each request, as the endpoint has them: temperature, max_tokens, seed."""

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        try:
            Endpoint(value)
        except EndpointError as error:
            raise refuse(str(error)) from None
        return value

    @field_validator("options")
    @classmethod
    def _leaves_ours_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := [name for name in RESERVED if name in value]:
            raise refuse(f"{taken[0]} is no option: the request sets it, or one whole answer is needed; remove it")
        return value

    def endpoint(self) -> Endpoint:
        """Where to ask. Raises EndpointError where the key is not set."""
        return Endpoint(self.url, key_from(self.key_variable), self.timeout, self.tries)


class Rewriting(Section):
    """Documents of a source, what is asked about each, and where the answers go."""

    source: Source
    endpoint: Service
    prompt: str = TRANSLATION
    system: str | None = None
    language: Tag = "ar"
    """Of the answers."""
    tokenizer: InputPath
    """Counts the tokens of the estimate: best that of the model that answers."""
    answer_tokens: Annotated[float, within(Range(0.001, 1000))] = 1.5
    """Assumed tokens of an answer for each token of the document, in the estimate."""
    output: InputPath
    on_error: Literal["stop", "count"] = "stop"

    @model_validator(mode="after")
    def _fits(self) -> Rewriting:
        if TEXT not in self.prompt:
            raise refuse(f"must have {TEXT} where the document goes", "prompt")
        if self.source.weight is not None:
            raise refuse("has no `weight` here; give it to the source of `data build` that reads the output", "source")
        if Path(self.output).suffix != ".jsonl":
            raise refuse("must be the name of a .jsonl file, which `data build` then reads", "output")
        return self


def read_rewriting(path: str | Path) -> Rewriting:
    """The typed settings of a YAML. Raises ConfigError: one line with file, line number, key, and what to do."""
    return read_section(path, Rewriting, "source, endpoint, tokenizer and output")
