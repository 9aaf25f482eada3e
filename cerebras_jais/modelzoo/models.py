"""The models `jais_family` and `jais_adapted` of the Model Zoo: its GPT-2 class, kept to the family, with freezing.

Stock `jais` and `llama` are that class under other names; so are these, and checkpoints go between them. What is added:
a config that refuses what is not of the family (`catalog.family`), and `frozen_parameters`.

The Model Zoo reads annotations of these classes at run time, so they are not postponed here.
"""

from typing import Any, List, Literal  # noqa: UP035

from cerebras.modelzoo.models.nlp.gpt2.model import Gpt2Model, GPT2ModelConfig
from pydantic import model_validator

from cerebras_jais.catalog.family import check_family
from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.freeze import freeze_parameters

_PLAIN = (type(None), bool, int, float, str, list, tuple, dict)


class FamilyConfig(GPT2ModelConfig):  # type: ignore[misc]
    """What both configs share; every key but `frozen_parameters` is the Model Zoo's own."""

    frozen_parameters: List[str] = []  # noqa: UP006, RUF012
    """Regular expressions searched for in tensor names; what they find is not trained and has no optimizer state."""

    @model_validator(mode="before")
    @classmethod
    def _is_of_the_family(cls, data: Any) -> Any:
        # The Model Zoo checks a config again and again as it copies it; then there are objects where YAML has mappings.
        if isinstance(data, dict) and all(isinstance(value, _PLAIN) for value in data.values()):
            names = cls.model_fields["name"].annotation.__args__
            try:
                check_family(DecoderConfig.from_section({"name": names[0], **data}))
            except UserError as error:
                raise ValueError(str(error)) from None
        return data


class JaisFamilyConfig(FamilyConfig):
    """Config of the Jais models trained from scratch: ALiBi, LayerNorm, biases, muP, a tied head."""

    name: Literal["jais_family"]


class JaisAdaptedConfig(FamilyConfig):
    """Config of the Jais models adapted from Llama 2: rotary positions, RMSNorm, no biases, a head of its own."""

    name: Literal["jais_adapted"]


class JaisFamilyModel(Gpt2Model):  # type: ignore[misc]
    """`jais_family`: forward takes input_ids, attention_mask and labels, int32 [B, L], and returns the loss."""

    def __init__(self, config: JaisFamilyConfig):
        super().__init__(config)
        freeze_parameters(self, config.frozen_parameters)


class JaisAdaptedModel(Gpt2Model):  # type: ignore[misc]
    """`jais_adapted`: as `jais_family`, for the models adapted from Llama 2."""

    def __init__(self, config: JaisAdaptedConfig):
        super().__init__(config)
        freeze_parameters(self, config.frozen_parameters)
