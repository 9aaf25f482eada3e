"""Damage what a conversion is given, convert there and back: `python tests/attacks/conversion.py --count N --seed S`.

Most of the damage is to the configs, the rest to the files of weights. Whatever a conversion does not refuse must come
back from the other side as the tensors that h5py and the safetensors library read in the damaged input.
"""

import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import load_file

from cerebras_jais.errors import UserError
from checkpoint_convert.configs.trainer_yaml import trainer_params
from checkpoint_convert.convert import convert_to_cerebras, convert_to_hf
from tests.attacks import mdl, safetensors
from tests.attacks.mutations import Subject, Tensors, from_torch, main, mutate_bytes, mutate_json
from tests.checkpoint_convert.examples import VARIANTS, random_model, state_of, write_checkpoint

CASES = ("jais-12-heads", "jais-deprecated-mup", "llama-40-heads-grouped", "llama-20-heads-tied")
WORDS = ("alibi", "rotary", "learned", "swiglu", "gelu", "float16", "JAISLMHeadModel", "LlamaForCausalLM", "n_embd")
WORDS += ("mup_base_hidden_size", "output_logits_scale", "rope_scaling", "hidden_size", "dtype", "vocab_size")


@dataclass(frozen=True)
class Array:
    """A tensor that has been read."""

    array: np.ndarray

    def read(self) -> np.ndarray:
        return self.array


def make_subject(directory: Path) -> Subject:
    """Checkpoints with their YAML and releases with their config.json."""
    cases = []
    for name in CASES:
        section = VARIANTS[name]
        checkpoint = directory / f"{name}-checkpoint"
        checkpoint.mkdir(parents=True)
        write_checkpoint(checkpoint / mdl.NAME, section, state_of(random_model(section)), with_metadata=False)
        # JSON is YAML, and can be damaged with care.
        text = json.dumps(trainer_params(section, mdl.NAME), indent=1)
        (checkpoint / "model.yaml").write_text(text)
        release = directory / f"{name}-release"
        convert_to_hf(checkpoint / mdl.NAME, release, config=checkpoint / "model.yaml")
        cases += [checkpoint, release]
    return Subject(tuple(cases), mutate, there_and_back, read_with_libraries, UserError)


def mutate(draw: random.Random, directory: Path) -> None:
    if draw.random() < 0.3:
        (safetensors if (directory / "config.json").exists() else mdl).mutate(draw, directory)
        return
    path = directory / ("config.json" if (directory / "config.json").exists() else "model.yaml")
    text = path.read_text()
    if draw.random() < 0.2:
        path.write_bytes(mutate_bytes(draw, text.encode(), []))
        return
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        text = mutate_json(draw, text, WORDS)
    path.write_text(text)


def there_and_back(directory: Path) -> dict[str, Array]:
    """The tensors of the input after both conversions, in the names of the input."""
    with tempfile.TemporaryDirectory(prefix="fuzz_") as scratch:
        other, back = Path(scratch, "other"), Path(scratch, "back")
        if (directory / "config.json").exists():
            convert_to_cerebras(directory, other.with_suffix(".mdl"))
            convert_to_hf(other.with_suffix(".mdl"), back)
            found = _shards(back)
        else:
            convert_to_hf(directory / mdl.NAME, other, config=directory / "model.yaml")
            back.mkdir()
            convert_to_cerebras(other, back / mdl.NAME)
            found = _weights(back)
    return {name: Array(_array(*tensor)) for name, tensor in found.items()}


def read_with_libraries(directory: Path) -> Tensors:
    """The tensors of the damaged input."""
    return _shards(directory) if (directory / "config.json").exists() else _weights(directory)


def _array(dtype: str, shape: tuple[int, ...], data: bytes) -> np.ndarray:
    return np.frombuffer(data, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).reshape(shape)


def _shards(directory: Path) -> Tensors:
    return from_torch({k: v for path in directory.glob("*.safetensors") for k, v in load_file(path).items()})


def _weights(directory: Path) -> Tensors:
    return {name: found for name, found in mdl.read_with_h5py(directory).items() if name.startswith("model.")}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(make_subject)
