"""What each callback and logger of the Model Zoo 2.10 means on a CPU or GPU: honoured, without effect, or not done.

The names and argument names are those of Model Zoo trainer/callbacks, trainer/extensions and trainer/loggers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cerebras_jais.ranges import COUNT

# Change what is trained or kept: done here too.
HONOURED: Mapping[str, tuple[str, ...]] = {
    "CheckLoss": (),
    "KeepNCheckpoints": ("n",),
    "LoadCheckpointStates": ("load_checkpoint_states",),
}

# Concern a CS system, profile it, or only report; None stands for arguments of any name.
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
    "EleutherEvalHarness": None,
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


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and COUNT.holds(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_path(value: Any) -> bool:
    return _is_text(value) and bool(value) and "\0" not in value


def _or_null(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


def _is_names(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(map(_is_text, value)))


# What the arguments that have an effect here may be, if they are given: a test of the value, and its name in words.
ARGUMENT_KINDS: Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "KeepNCheckpoints": {"n": (_or_null(_is_count), f"{COUNT}, or null")},
    "LoadCheckpointStates": {"load_checkpoint_states": (_is_names, "text or a list of names")},
    "TensorBoardLogger": {"summary_dir": (_or_null(_is_path), "the path of a folder, or null")},
}

# Callbacks whose arguments are paths of flags under cerebras.pytorch's backends.
FLAG_CALLBACKS = ("ScopedTrainFlags", "ScopedValidateFlags", "GlobalFlags")
