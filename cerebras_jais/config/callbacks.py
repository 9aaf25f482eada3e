"""What each callback and logger of the Model Zoo 2.10 means on a CPU or GPU: honoured, without effect, or not done.

The names and argument names are those of Model Zoo trainer/callbacks, trainer/extensions and trainer/loggers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cerebras_jais.ranges import COUNT, shown
from cerebras_jais.wording import suggestion

# Change what is trained or kept: done here too.
HONOURED: Mapping[str, tuple[str, ...]] = {
    "CheckLoss": (),
    "KeepNCheckpoints": ("n",),
    "LoadCheckpointStates": ("load_checkpoint_states",),
}

# Concern a CS system, profile it, or only report; None allows arguments of any name.
WITHOUT_EFFECT: Mapping[str, tuple[str, ...] | None] = {
    "ScopedTrainFlags": None,
    "ScopedValidateFlags": None,
    "GlobalFlags": None,
    "DebugArgsPath": ("debug_args_path",),
    "ComputeNorm": (),
    "CountParams": ("search_and_replace", "order_by", "descending"),
    "DumpActivations": ("outdir", "buffer_steps"),
    "DumpAvailableTensorNames": (),
    "DurationProfiler": (),
    "EmailNotification": ("mailto", "mailfrom", "server_name", "port", "notification_endpoint", "subject"),
    "EleutherEvalHarness": (
        *("eeh_args", "keep_data_dir", "every_n_vals", "flags", "name_scope", "batch_size", "data_dir"),
        *("max_sequence_length", "tokenizer_file_path", "eos_id", "bos_token", "pretrained_model_name_or_path"),
        *("shuffle", "num_workers", "prefetch_factor", "persistent_workers", "drop_last"),
    ),
    "BigCodeEvalHarness": None,
    "ScopedEleutherEvalHarnessFlags": None,
    "ScopedBigCodeEvalHarnessFlags": None,
    "FlopUtilization": (),
    "GenerateUntil": None,
    "HFCacheDir": ("cache_dir",),
    "LogInputSummaries": (),
    "LogLikelihood": None,
    "LogOptimizerParamGroup": ("keys",),
    "LogSparsity": (),
    "ModelEvalMetrics": (),
    "ModelZooParamsMetadata": ("params",),
    "NaNChecker": ("num_steps",),
    "NormTensorListener": ("listener_name", "tensor_names"),
    "Profiler": None,
    "OpProfiler": ("start_step", "end_step", "host_activities"),
    "RateProfiler": (),
    "SamplesStreamedInfo": (),
    "SavePerformanceData": (),
    "SlackNotification": ("channels",),
    "SummaryTensorListener": ("listener_name", "tensor_names"),
}

# Change what is trained or kept, and are not done here: a run that left them out would be another run.
NOT_HERE = ("ComputeNormGNS", "Lora", "SaveCheckpointState", "SelectiveGrad", "SkipSamples", "WeightCompression")

LOGGERS: Mapping[str, tuple[str, ...]] = {
    "ProgressLogger": (),
    "TensorBoardLogger": ("summary_dir", "legacy_event_dirs"),
}
LOGGERS_WITHOUT_EFFECT: Mapping[str, tuple[str, ...]] = {
    "TelemetryLogger": ("max_buffer_size", "max_buffer_seconds"),
    "WandbLogger": ("project", "group", "run_id", "run_name", "job_type", "tags", "resume", "entity"),
}


def is_count(value: Any) -> bool:
    """Whether a value is a whole number above 0, written as one."""
    return isinstance(value, int) and COUNT.holds(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_path(value: Any) -> bool:
    return _is_text(value) and bool(value) and "\0" not in value


def _or_null(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


# The states that checkpoints of the Model Zoo's trainer hold.
CHECKPOINT_STATES = ("dataloader", "global_step", "grad_scaler", "model", "optimizer", "schedulers", "sparsity")


def named_states(value: Any) -> frozenset[str] | None:
    """The states that `load_checkpoint_states` names: None for all of them.

    It is "all", names joined by commas, or a list of names. The Model Zoo compares letter for letter: its constructor
    takes "All", and the run then ends with an AttributeError where the checkpoint is loaded; a space or "all" in a list
    ends it with a KeyError. (Model Zoo trainer/callbacks/checkpoint.py, LoadCheckpointStates.)

    Raises ValueError, in words, for a value that the Model Zoo could not load a checkpoint with.
    """
    if value == "all":
        return None
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(map(_is_text, names)):
        raise ValueError(f"must be text or a list of names (got {shown(value)})")
    for name in names:
        if name not in CHECKPOINT_STATES:
            plain = name.strip().lower()
            remedy = "; write all, alone and in small letters" if plain == "all" else ""
            if not remedy and plain in CHECKPOINT_STATES:
                remedy = "; write the names without spaces" if name != name.strip() else "; write it in small letters"
            known = ", ".join(sorted((*CHECKPOINT_STATES, "all")))
            raise ValueError(f"no checkpoint holds {shown(name)}{remedy}; known: {known}")
    return frozenset(names)


# What the arguments that have an effect here may be, if they are given: a test of the value, and its name in words.
ARGUMENT_KINDS: Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "KeepNCheckpoints": {"n": (_or_null(is_count), f"{COUNT}, or null")},
    "TensorBoardLogger": {"summary_dir": (_or_null(_is_path), "the path of a folder, or null")},
}

# The arguments of lm_eval's command line that EleutherEvalHarness takes (Model Zoo trainer/extensions/eleuther).
HARNESS_ARGUMENTS = (
    *("tasks", "num_fewshot", "output_path", "limit", "use_cache", "cache_requests", "check_integrity", "write_out"),
    *("log_samples", "system_instruction", "apply_chat_template", "fewshot_as_multiturn", "show_config"),
    *("include_path", "predict_only", "seed", "trust_remote_code", "verbosity", "max_tokens", "temperature"),
    *("top_k", "top_p"),
)


def harness_problem(arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with the arguments of EleutherEvalHarness, which it says itself only when it is run."""
    given = arguments.get("eeh_args")
    if not isinstance(given, dict):
        return f"eeh_args must be a mapping with tasks (got {shown(given)})"
    for key in given:
        if key not in HARNESS_ARGUMENTS:
            return f"unknown key {key!r} of eeh_args; {suggestion(str(key), HARNESS_ARGUMENTS)}"
    if not _is_path(given.get("tasks")):
        return f"eeh_args.tasks must be names of tasks, with commas between them (got {shown(given.get('tasks'))})"
    if not _is_path(arguments.get("data_dir")):
        return f"data_dir must be a folder that the cluster mounts (got {shown(arguments.get('data_dir'))})"
    if not is_count(arguments.get("batch_size")):
        return f"batch_size must be {COUNT} (got {shown(arguments.get('batch_size'))})"
    has_file, has_id = _is_path(arguments.get("tokenizer_file_path")), type(arguments.get("eos_id")) is int
    if not (has_file and has_id) and (has_file or not _is_path(arguments.get("pretrained_model_name_or_path"))):
        return "has no tokenizer; give tokenizer_file_path and eos_id, or pretrained_model_name_or_path"
    return None


# Callbacks whose arguments are paths of flags under cerebras.pytorch's backends.
FLAG_CALLBACKS = ("ScopedTrainFlags", "ScopedValidateFlags", "GlobalFlags")
