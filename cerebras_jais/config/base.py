"""What every section of the trainer YAML is: a frozen pydantic model to which an unknown key is an error."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from cerebras_jais import ranges
from cerebras_jais.ranges import Range, shown
from cerebras_jais.wording import suggestion


def refuse(message: str, key: str | None = None) -> PydanticCustomError:
    """What a validator raises: `message`, at `key` of its section where one is given."""
    # pydantic formats the template; keys and values with braces in them go through the context.
    return PydanticCustomError("config", "{message}", {"message": message, "key": key})


def refuse_beyond(message: str, key: str | None = None) -> PydanticCustomError:
    """As `refuse`, where only the Model Zoo may be able to run the file (`ModelZooAloneError`)."""
    return PydanticCustomError("beyond", "{message}", {"message": message, "key": key})


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
        raise refuse(f"expected one mapping from the name of the {what} to its keys (got {shown(value)})")
    ((name, keys),) = value.items()
    return str(name), {} if keys is None else keys


# ---- numbers and paths of a section ---------------------------------------------------------------------------------


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise refuse(f"must be a number (got {value})")
    return value


def _path(value: Any) -> Any:
    if isinstance(value, str) and (not value or "\0" in value):
        raise refuse(f"must be the path of a file or folder (got {shown(value)})")
    return value


def within(bounds: Range) -> AfterValidator:
    """Refuses a number outside a range; annotates a field of a section."""

    def check(value: Any) -> Any:
        problem = bounds.problem(value)
        if problem is not None:
            raise refuse(problem)
        return value

    return AfterValidator(check)


def _subset(value: str) -> str:
    try:
        ranges.subset_bounds(value)
    except ValueError as error:
        raise refuse(str(error)) from None
    return value


_NUMBER = BeforeValidator(_number)
Count = Annotated[int, _NUMBER, within(ranges.COUNT)]
CountOrNone = Annotated[int, _NUMBER, within(ranges.COUNT_OR_NONE)]
Size = Annotated[int, _NUMBER, within(ranges.SIZE)]
Seed = Annotated[int, _NUMBER, within(ranges.SEED)]
Rate = Annotated[float, _NUMBER, within(ranges.RATE)]
RateScale = Annotated[float, _NUMBER, within(ranges.RATE_SCALE)]
Fraction = Annotated[float, _NUMBER, within(ranges.FRACTION)]
Epsilon = Annotated[float, _NUMBER, within(ranges.EPSILON)]
Factor = Annotated[float, _NUMBER, within(ranges.FACTOR)]
LossScale = Annotated[float, _NUMBER, within(ranges.LOSS_SCALE)]
Weight = Annotated[float, _NUMBER, within(ranges.WEIGHT)]
StepsOrFraction = Annotated[int | float, _NUMBER]
PathText = Annotated[str, BeforeValidator(_path)]
Subset = Annotated[str, AfterValidator(_subset)]
