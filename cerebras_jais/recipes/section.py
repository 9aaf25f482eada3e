"""The ground of every section of the trainer YAML: frozen, and a key it does not know is an error."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import AliasChoices, BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from cerebras_jais.recipes.yaml_source import suggestion


def refuse(message: str, key: str | None = None) -> PydanticCustomError:
    # Braces are the template's own; keys and values go in through the context.
    return PydanticCustomError("recipe", "{message}", {"message": message, "key": key})


class Section(BaseModel):
    """One mapping of the YAML: unknown keys are errors that name the closest known one."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), populate_by_name=True, allow_inf_nan=False
    )
    without_effect: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, value: Any) -> Any:
        if isinstance(value, dict):
            known: set[str] = set()
            for name, field in cls.model_fields.items():
                alias = field.validation_alias
                known |= set(map(str, alias.choices)) if isinstance(alias, AliasChoices) else {str(alias or name)}
            for key in value:
                if str(key) not in known:
                    raise refuse(f"unknown key; {suggestion(str(key), known)}", str(key))
        return value


def unwrap(value: Any, what: str) -> tuple[str, Any]:
    if not isinstance(value, dict) or len(value) != 1:
        raise refuse(f"expected one mapping from the name of the {what} to its keys (got {value!r})")
    ((name, keys),) = value.items()
    return str(name), {} if keys is None else keys
