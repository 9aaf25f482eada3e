"""What a trainer YAML may say about a CS cluster: its options and the flags of the callbacks that set them.

Source: cerebras.appliance cluster_config.py and cerebras.pytorch backends.py of 2.10. The Model Zoo's own validation
looks at neither: a slip there shows only when the run meets the cluster.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import field_validator

from cerebras_jais.config.base import Count, CountOrNone, Section, refuse
from cerebras_jais.config.callbacks import is_count
from cerebras_jais.modelzoo_version import RELEASE
from cerebras_jais.ranges import shown
from cerebras_jais.wording import suggestion

_LABEL_PART = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]")


class ClusterConfig(Section):
    """`backend.cluster_config`: how much of a cluster a job takes, and what is mounted in its containers."""

    mgmt_address: str | None = None
    mgmt_namespace: str | None = None
    credentials_path: str | None = None
    num_csx: Count = 1
    max_wgt_servers: CountOrNone = 0
    max_act_per_csx: CountOrNone = 0
    num_workers_per_csx: CountOrNone = 1
    cbcore_image: str | None = None
    job_labels: list[str] | None = None
    job_priority: Literal["p1", "p2", "p3"] = "p2"
    job_time_sec: Count | None = None
    mount_dirs: str | list[str | dict[str, Any]] | None = None
    python_paths: str | list[str] | None = None
    automount: bool = True
    mount_all: bool = True
    disable_mount_check: bool = True
    disable_version_check: bool = False
    workflow_id: str | None = None
    notifications: list[Any] | None = None

    @field_validator("job_labels")
    @classmethod
    def _labels_are_pairs(cls, labels: list[str] | None) -> list[str] | None:
        for label in labels or []:
            parts = label.split("=")
            if len(parts) != 2 or not all(_LABEL_PART.fullmatch(part) for part in parts):
                raise refuse(f"label {shown(label)} must be key=value of letters, digits, '-', '_' and '.'")
        return labels


def _is_micro_batch(value: Any) -> bool:
    if isinstance(value, dict):
        bounds = value.get("explore")
        within = bounds is None or (isinstance(bounds, dict) and set(bounds) <= {"min", "max"})
        return set(value) == {"explore"} and within and all(map(is_count, (bounds or {}).values()))
    return value is None or value in ("auto", "explore") or is_count(value)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_anything(value: Any) -> bool:
    return True


_Kind = tuple[Callable[[Any], bool], str]
_SWITCH: _Kind = (_is_switch, "true or false")
_COUNT: _Kind = (is_count, "a whole number above 0")
_MEMORY: _Kind = (lambda v: v is None or is_count(v), "a whole number of GiB above 0, or null")
_ANY: _Kind = (_is_anything, "")

FLAGS: Mapping[str, _Kind] = {
    "csx.cluster.auto_taint": _SWITCH,
    "csx.precision.optimization_level": (lambda v: v in (0, 1, 2) and not _is_switch(v), "0, 1 or 2"),
    "csx.performance.micro_batch_size": (
        _is_micro_batch,
        "auto, explore, a whole number above 0, null, or {explore: {min: ..., max: ...}}",
    ),
    "csx.performance.transfer_processes": _COUNT,
    "csx.performance.max_transfer_bytes": _COUNT,
    "csx.performance.compress_weights": _SWITCH,
    "csx.performance.use_speculative_optimizers": _SWITCH,
    "csx.storage.s3.profile": _ANY,
    "csx.debug.debug_args": _ANY,
    "csx.debug.ini": _ANY,
    "csx.debug.check_constraints": _SWITCH,
    "csx.debug.retrace_every_iteration": _SWITCH,
    "csx.debug.lazy_initialization": _SWITCH,
    "csx.debug.log_initialization": _SWITCH,
    "csx.debug.optimize_initialization": _SWITCH,
    "csx.debug.skip_weight_init": _SWITCH,
    "csx.debug.skip_connectivity_check": _SWITCH,
    "csx.debug.drop_data": _SWITCH,
    "csx.debug.save_gpv": _SWITCH,
    "csx.debug.implicit_cast_cb16_to_fp32": _SWITCH,
    "csx.debug.op_definition_module": _ANY,
    "csx.debug.fabric_type_blacklist": _ANY,
    **{
        f"csx.debug.{what}_memory_gi": _MEMORY
        for what in ("act", "chf", "cmd", "compile_crd", "execute_crd", "wgt", "wrk")
    },
}
# Below these are names of their own, which only the cluster knows.
OPEN_FLAGS = ("csx.debug.debug_args.", "csx.debug.ini.")


def flag_problem(flag: str, value: Any) -> str | None:
    """What is wrong with one flag of ScopedTrainFlags and its kin, None where nothing is."""
    if flag.startswith(OPEN_FLAGS):
        return None
    if flag not in FLAGS:
        return f"flag {flag!r} is unknown to cerebras_pytorch {RELEASE}; {suggestion(flag, FLAGS)}"
    holds, what = FLAGS[flag]
    return None if holds(value) else f"{flag} must be {what} (got {shown(value)})"
