"""A cluster that cannot be reached, as one line instead of the chain of errors it comes in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from cerebras_jais.errors import DIFFERENT, UserError

CLIENT = "cerebras/appliance/cluster"  # the part of the Cerebras software that talks to the cluster
CLUSTER_FILE = Path("/opt/cerebras/config_v2")  # cerebras.appliance cluster/config.py; CSCONFIG_PATH names another
# What the client raises when the cluster did answer: it speaks for itself.
ANSWERS = frozenset(
    {
        *("ClusterJobInitError", "ClusterJobScheduleError", "ClusterJobCancelledByCsctl"),
        *("ApplianceVersionError", "MissingVolumeError"),
    }
)


class NoConnection(UserError):
    """The cluster cannot be reached: no fault of the input, and the same launch may succeed later."""

    status = DIFFERENT


def cluster_file() -> Path:
    """The file that a user node's installer makes: the cluster's address, namespaces and certificates."""
    return Path(os.environ.get("CSCONFIG_PATH") or CLUSTER_FILE)


@contextmanager
def explained() -> Iterator[None]:
    """Raise NoConnection in place of whatever the Cerebras client of the cluster raised; other errors pass."""
    try:
        yield
    except Exception as error:
        cause = _root(error)
        if not _came_from(cause.__traceback__, CLIENT) or type(cause).__name__ in ANSWERS:
            raise
        file = cluster_file()
        known = f"the address is from {file}" if file.is_file() else f"{file} is absent: this is no user node"
        raise NoConnection(
            f"no connection to the cluster: {' '.join(str(cause).split())}; {known}. Everything before the connection "
            "is in order. Run this on a user node of the cluster, or give mgmt_address, mgmt_namespace and "
            "credentials_path in trainer.init.backend.cluster_config"
        ) from error


def _root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = cause
    return error


def _came_from(traceback: TracebackType | None, part: str) -> bool:
    while traceback is not None:
        if part in traceback.tb_frame.f_code.co_filename.replace(os.sep, "/"):
            return True
        traceback = traceback.tb_next
    return False
