"""A model to read, on either side: a .mdl file or a release directory, opened from headers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cerebras_jais.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from cerebras_jais.checkpoint.hdf5.isolate import Descriptions
from cerebras_jais.config.yaml_file import ConfigFile
from cerebras_jais.errors import UserError
from cerebras_jais.files import Identity, identity_of, open_regular
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.stored import FOLD_THEM, stored_weights
from cerebras_jais.model.tensors import bare_name, under_both_names
from checkpoint_convert.configs.convert import (
    SpecialTokens,
    check_convertible,
    special_tokens_of,
    to_model_section,
)
from checkpoint_convert.configs.trainer_yaml import (
    adjustments_left_out,
    model_section_of,
    read_params,
    tunes_on_conversations,
)
from checkpoint_convert.errors import ConversionError, first_few
from checkpoint_convert.formats import safetensors as safetensors_files
from checkpoint_convert.formats import torch_bin as pickle_files
from checkpoint_convert.formats.json_files import read_json
from checkpoint_convert.formats.release_directory import ADAPTER_CONFIG, CONFIG, has_chat_template
from checkpoint_convert.formats.tensors import FileTensor, Tensor
from checkpoint_convert.mapping.rules import Side, ties

FileStates = Mapping[str, Identity]
"""Path -> identity."""
_ABSENT: Identity = (-1, -1)
_GGUF = b"GGUF"


@dataclass(frozen=True)
class Model:
    """A model as a file or directory holds it; its tensors can be read while it is open."""

    path: Path
    side: Side
    section: Mapping[str, Any]
    """The `model:` section of a trainer YAML that describes it, in the form of release 2.10."""
    config: DecoderConfig
    tensors: Mapping[str, Tensor]
    """By name, tied ones under both of their names; on the Cerebras side without the leading `model.`."""
    notes: tuple[str, ...]
    """What was left out or assumed in reading it."""
    origin: Mapping[str, str]
    """What it records of its origin: label -> text."""
    files: FileStates
    """The files that were opened, with their size and time of change then."""
    tokens: SpecialTokens | None
    """Ids of the special tokens, where it records them."""
    is_chat: bool
    """Whether it is tuned on conversations: the run of a checkpoint says so, a release has a chat template."""

    def check_unchanged(self) -> None:
        """Raise ConversionError when one of its files has changed since it was opened."""
        for path, state in self.files.items():
            if _state_of(Path(path)) != state:
                raise ConversionError(
                    f"{path}: changed while it was read; rerun the command when its writer has finished"
                )


@contextmanager
def opening(
    path: Path,
    *,
    config: Path | ConfigFile | Mapping[str, Any] | None = None,
    allow_pickle: bool = False,
    descriptions: Descriptions | None = None,
) -> Iterator[Model]:
    """Open a model of either side; only headers are read.

    Args:
        path: a .mdl file, or a directory with config.json and weights.
        config: of a .mdl file: a trainer YAML, which may be open already, or a `model:` section; None takes the config
            that the file records.
        allow_pickle: whether weights in pickle files may be read (formats/torch_bin.py; nothing in them is run).
        descriptions: a child that was started with the .mdl file among others; None starts one where it is needed.

    Raises:
        UserError: the file or directory cannot be read, is damaged, or is no model of the family.
    """
    if path.is_dir():
        yield _with_every_name(_open_release(path, allow_pickle))
        return
    refuse_gguf(path)
    files = {str(path): _state_of(path)}
    with open_checkpoint(path, on_object="skip", descriptions=descriptions) as opened:
        yield _with_every_name(_open_checkpoint(opened, config, files))


def _with_every_name(model: Model) -> Model:
    """The model with its tied tensors under both names, whichever of them is stored.

    A config with more layers than the model has tensors is refused before the tensors of every layer are listed.
    """
    layers = model.config.num_hidden_layers
    if layers > len(model.tensors):
        raise ConversionError(
            f"{model.path}: its config has {layers} layers (num_hidden_layers, n_layer), but the model holds "
            f"{len(model.tensors)} tensors in all; give the config that belongs to it"
        )
    return replace(model, tensors=under_both_names(model.tensors, ties(model.config, model.side)))


def _open_release(path: Path, allow_pickle: bool) -> Model:
    _refuse_adapter(path)
    config_json = read_json(path / CONFIG)
    with _named(path / CONFIG):
        section, notes = to_model_section(config_json)
        config = DecoderConfig.from_section(section)
        check_convertible(config)
        tokens = special_tokens_of(config_json)
    files = {str(file): _state_of(file) for file in path.iterdir() if file.suffix in (".safetensors", ".bin", ".json")}
    tensors = weights_of(path, allow_pickle)
    read = {str(tensor.path) for tensor in tensors.values()} | {str(path / CONFIG)}
    opened = {name: files[name] for name in sorted(read)}
    return Model(
        path, "hugging_face", section, config, tensors, tuple(notes), {}, opened, tokens, has_chat_template(path)
    )


def is_gguf(path: Path) -> bool:
    """Whether a file calls itself GGUF, by its name or by its first bytes."""
    if path.suffix.lower() == ".gguf" or not path.is_file():
        return path.suffix.lower() == ".gguf" and not path.is_dir()
    with open_regular(path, ConversionError) as file:
        return file.read(len(_GGUF)) == _GGUF


def refuse_gguf(path: Path) -> None:
    """Raise ConversionError for a GGUF file, which is no model to convert from."""
    if is_gguf(path):
        raise ConversionError(
            f"{path}: is a GGUF file, which only `verify` reads, with the checkpoint or release that it was made of"
        )


def _refuse_adapter(path: Path) -> None:
    if (path / ADAPTER_CONFIG).is_file() and not (path / CONFIG).is_file():
        raise ConversionError(f"{path}: is an adapter without its model; {FOLD_THEM}")


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Name the file that a config comes from in front of an error about it."""
    try:
        yield
    except UserError as error:
        raise ConversionError(f"{file}: {str(error).removeprefix(f'{file.name}: ')}") from error


def weights_of(path: Path, allow_pickle: bool) -> dict[str, FileTensor]:
    """The tensors of a release by name: of safetensors, or where there are none and it is allowed, of pickle files.

    Raises:
        ConversionError: there are neither, or an adapter's alone, or they are damaged, or pickle files not allowed.
    """
    _refuse_adapter(path)
    pickled = any((path / name).is_file() for name in (pickle_files.INDEX, pickle_files.SINGLE))
    if not pickled or any((path / name).is_file() for name in (safetensors_files.INDEX, safetensors_files.SINGLE)):
        return safetensors_files.open_model(path)
    if not allow_pickle:
        raise ConversionError(
            f"{path}: has its weights in pickle files; give --allow-pickle to read them (nothing in them is run), "
            "or save it as safetensors first"
        )
    return pickle_files.open_bin_model(path)


def _open_checkpoint(
    opened: Checkpoint, config: Path | ConfigFile | Mapping[str, Any] | None, files: FileStates
) -> Model:
    params: Any = _last_record(opened).get("params")
    run = params
    if isinstance(config, Mapping):
        section = dict(config)
    elif config is not None:
        run, where = read_params(config)
        section = model_section_of(run, where)
    elif params:
        section = model_section_of(params, f"{opened.path} (its __metadata__)")
    else:
        raise ConversionError(f"{opened.path}: records no config; give the trainer YAML with --config")
    said_by = config.path if isinstance(config, ConfigFile) else config if isinstance(config, Path) else opened.path
    with _named(said_by):
        model = DecoderConfig.from_section(section)
    with _named(opened.path):
        tokens = special_tokens_of(_last_record(opened).get("special_tokens"))
    notes = [*_left_out(opened), *(adjustments_left_out(params) if params else [])]
    return Model(
        opened.path,
        "cerebras",
        section,
        model,
        cerebras_tensors(opened),
        tuple(notes),
        _origin(opened),
        files,
        tokens,
        tunes_on_conversations(run),
    )


def cerebras_tensors(opened: Checkpoint) -> dict[str, StoredTensor]:
    """The model's tensors in a checkpoint, by their names in release 2.10 without the leading `model.`.

    Raises:
        WeightsError: they cannot be read (`cerebras_jais.model.stored`).
    """
    return {bare_name(name): tensor for name, tensor in stored_weights(opened).items()}


def _last_record(opened: Checkpoint) -> Mapping[str, Any]:
    """The metadata that the last writer of the checkpoint added."""
    last = opened.metadata[-1] if opened.metadata else None
    return last if isinstance(last, Mapping) else {}


def _left_out(opened: Checkpoint) -> list[str]:
    others = [str(key) for key in opened.tree if key not in ("model", "__metadata__")]
    notes = [f"left out: {', '.join(others)} (a release holds weights only)"] if others else []
    skipped = opened.skipped_objects
    if skipped:
        notes.append(f"not read, because they are pickled or stored elsewhere: {first_few(skipped)}")
    return notes


def _origin(opened: Checkpoint) -> dict[str, str]:
    """Where the weights come from, as far as the checkpoint records it."""
    origin: dict[str, str] = {}
    last = _last_record(opened)
    if isinstance(last.get("version"), str):
        origin["Made from"] = f"a checkpoint of Cerebras release {last['version']}"
    step = opened.tree.get("global_step")
    if isinstance(step, StoredTensor) and not step.shape:
        step = step.read().item()
    if isinstance(step, int):
        origin["Training step"] = f"{step:,}"
    return origin


def _state_of(path: Path) -> Identity:
    try:
        return identity_of(path)
    except OSError:
        return _ABSENT  # the reader that opens it reports the error
