"""The release that is checked: its configs, its headers and, once a check needs it, its model in transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoint_convert.configs.convert import to_model_section
from checkpoint_convert.errors import ConversionError, first_few
from checkpoint_convert.formats.json_files import read_json
from checkpoint_convert.formats.release_directory import CONFIG, GENERATION_CONFIG
from checkpoint_convert.gate.report import Problems, Skipped
from checkpoint_convert.mapping.plan import Plan, make_plan
from checkpoint_convert.open_model import Model, opening
from checkpoint_convert.verify.manifest import manifest_path

LARGEST = 8 * 10**9
"""Bytes of weights in float32 up to which models are run without being asked."""


@dataclass
class Subject:
    """A release and how it is to be checked."""

    path: Path
    allow_pickle: bool = False
    trust_release_code: bool = False
    large: bool = False
    _stack: ExitStack = field(default_factory=ExitStack)
    _models: dict[str, Any] = field(default_factory=dict)

    @property
    def config_json(self) -> Mapping[str, Any]:
        return read_json(self.path / CONFIG)

    @property
    def generation_json(self) -> Mapping[str, Any]:
        """The content of generation_config.json; empty where there is none."""
        path = self.path / GENERATION_CONFIG
        return read_json(path) if path.exists() else {}

    @property
    def section(self) -> tuple[dict[str, Any], list[str]]:
        """The `model:` section of its config.json, with notes."""
        return to_model_section(self.config_json)

    @property
    def is_published(self) -> bool:
        """Whether no conversion of this package wrote it: it has neither a manifest nor a stored section."""
        try:
            return not manifest_path(self.path).exists() and "cerebras" not in self.config_json
        except ConversionError:
            return False

    @contextmanager
    def opened(self) -> Iterator[tuple[Model, Plan]]:
        """The release opened by its headers, and the plan of its conversion; Raises ConversionError."""
        with opening(self.path, allow_pickle=self.allow_pickle) as model:
            yield model, make_plan(model.config, model.side, model.tensors)

    def check_size(self) -> None:
        """Raise Skipped for a model that is not run unless it is asked for."""
        with self.opened() as (_, plan):
            if 4 * plan.parameters > LARGEST and not self.large:
                raise Skipped(
                    f"its weights are {4 * plan.parameters / 1e9:.0f} GB in float32, more than {LARGEST / 1e9:.0f} GB; "
                    "--large runs it"
                )

    def in_transformers(self, dtype: str) -> Any:
        """The model as transformers loads it, in an element type.

        Raises:
            ConversionError: it does not load, or not with these weights alone.
        """
        if dtype not in self._models:
            self._models = {dtype: self._load(dtype)}  # one at a time is in memory
        return self._models[dtype]

    def _load(self, dtype: str) -> Any:
        import torch

        from checkpoint_convert.verify.logits import transformers_errors
        from checkpoint_convert.verify.release_code import classes_of, read_code

        code = read_code(self.path)
        with transformers_errors(self.path):
            config_class, model_class = self._stack.enter_context(classes_of(code, trust=self.trust_release_code))
            config = config_class.from_dict(
                {key: value for key, value in code.config.items() if "_implementation" not in key}
            )
            model, about = model_class.from_pretrained(
                str(self.path),
                config=config,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                local_files_only=True,
            )
        problems = [
            f"{self.path}: transformers reports {kind.replace('_', ' ')}: {first_few(sorted(map(str, names)))}"
            for kind, names in about.items()
            if names
        ]
        if problems:
            raise Problems(problems)
        return model.eval()

    def close(self) -> None:
        """Forget the code of the release."""
        self._models = {}
        self._stack.close()
