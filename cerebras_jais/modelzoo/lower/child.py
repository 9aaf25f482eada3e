"""Lower one phase, in a process of its own: the trainer traces it, and stand-ins take what it asks of a cluster.

Run as `python -m cerebras_jais.modelzoo.lower.child FOLDER`. FOLDER has `request.json`: {"trainer": the mapping under
`trainer:`}. Written there: the text of each program at both levels, and `answer.json`, which names them or says what
went wrong.

Source: cerebras.pytorch backend/ltc_backend.py of 2.10, `on_run_start`: a run that compiles only meets the cluster
through `ClusterManager` and `ApplianceMode` alone, and `ApplianceMode.compile` is given the whole program.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import pydantic

from cerebras_jais.atomic import write_text
from cerebras_jais.errors import UserError
from cerebras_jais.modelzoo.phases import FIT
from cerebras_jais.modelzoo.process import add_programs_to_path, require_cirh_opt

# What the Model Zoo raises in place of the error that ended a run, where a callback fails at that end too.
_OF_A_CALLBACK = "Encountered error when calling"
STEPS = {"train": "train", "eval": "evaluate"}  # the modes of cerebras.pytorch, and the names of programs here


def main() -> None:
    """Entry point of the process; its status is 0 wherever it could write an answer."""
    folder = Path(sys.argv[1])
    add_programs_to_path()
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    programs: list[dict[str, Any]] = []
    try:
        require_cirh_opt()
        _lower(request["trainer"], folder, programs)
        for program in programs:
            program |= constraints_of((folder / f"{program['name']}.torch.mlir").read_text(encoding="utf-8"))
        failure = None
    except Exception as error:
        traceback.print_exc()  # into the log that the caller keeps
        failure = describe_failure(error)
    write_text(folder / "answer.json", json.dumps({"programs": programs, "failure": failure}))


def _lower(trainer: Mapping[str, Any], folder: Path, programs: list[dict[str, Any]]) -> None:
    from cerebras_jais.modelzoo import plugin

    plugin.register()
    ltc_backend: Any = importlib.import_module("cerebras.pytorch.backend.ltc_backend")
    ltc_backend.ApplianceMode = _appliance(folder, programs)
    ltc_backend.ClusterManager.client = property(_no_cluster)
    ltc_backend.ClusterManager.start_workflow = _no_cluster
    from cerebras.modelzoo.trainer.utils import run_trainer

    run_trainer(FIT, {"trainer": dict(trainer)})


def _no_cluster(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("the trainer asked for the cluster, which a run that compiles only does not need")


def _appliance(folder: Path, programs: list[dict[str, Any]]) -> type:
    """A class in the place of `ApplianceMode` that writes down each program and compiles none."""

    class StandIn:
        compile_resp = None

        def __init__(self, artifact_dir: str, *_: Any, **__: Any) -> None:
            self.artifact_dir = Path(artifact_dir)

        @contextmanager
        def build_worker_image(self, should_skip: bool) -> Iterator[None]:
            assert should_skip
            yield

        def compute_compile_hash(self, *_: Any) -> int:
            return len(programs)  # no two are the same, so every program comes to `compile`

        def get_sidecar_image(self) -> None:
            return None

        def set_sidecar_image(self, image: None) -> None:
            return None

        def compile(self, batch_size: int, cirh: str, *_: Any) -> None:
            from cerebras.pytorch.backend import current_backend_impl

            step = STEPS[current_backend_impl().mode]
            number = sum(program["step"] == step for program in programs)
            name = f"{step}-{number + 1}" if number else step
            torch_level = (self.artifact_dir / "torch.mlir").read_text(encoding="utf-8")
            write_text(folder / f"{name}.cirh.mlir", cirh)
            write_text(folder / f"{name}.torch.mlir", torch_level)
            programs.append({"step": step, "name": name, "batch_size": batch_size})

    return StandIn


def constraints_of(torch_level: str) -> dict[str, Any]:
    """What the Cerebras software knows of the constraints of a torch-level program's operations.

    The keys: `checked`, how many operations it knows constraints of, `unknown`, of how many it knows none, and
    `violations`, the operations that violate theirs, each with the reason.
    """
    from cerebras.pytorch.cs_op_lib.utils import validate_torch_mlir

    # Its native part looks for the modules of its own copy of torch_mlir under the name that they have elsewhere.
    copy = validate_torch_mlir.torch_mlir.__name__
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{copy}.")]:
        sys.modules[f"torch_mlir{name.removeprefix(copy)}"] = sys.modules[name]
    count = _CountingHandler()
    logger = validate_torch_mlir.LOGGER
    logger.setLevel(logging.INFO)
    logger.handlers, logger.propagate = [count], False
    found = validate_torch_mlir.check_mlir_text(torch_level)
    unknown = count.levels[logging.WARNING]
    checked = count.levels[logging.INFO] + count.levels[logging.ERROR]
    return {"checked": checked, "unknown": unknown, "violations": dict(found)}


class _CountingHandler(logging.Handler):
    """Counts the lines of a logger by their level: it has one for each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: Counter[int] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.levels[record.levelno] += 1


def describe_failure(error: BaseException) -> dict[str, Any]:
    """What went wrong, as plain values.

    The keys: `kind` of exception, its `message` and whether that is `for_users`, the `module` of the model, the
    `sources` that it passed through with the innermost first, and the `location` in a config that the Model Zoo
    refuses, empty for any other exception.
    """
    while str(error).startswith(_OF_A_CALLBACK) and (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    errors = error.errors(include_url=False) if isinstance(error, pydantic.ValidationError) else []
    return {
        "kind": type(error).__name__,
        "for_users": isinstance(error, UserError),
        "message": errors[0]["msg"] if errors else " ".join(str(error).split()),
        "module": module_of(error.__traceback__),
        "sources": [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)][::-1],
        "location": list(errors[0]["loc"])[1:] if errors else [],
    }


def module_of(trace: TracebackType | None) -> str | None:
    """The name of the innermost module of the model whose method an exception passed through."""
    torch = sys.modules.get("torch")  # which may be what could not be imported
    if torch is None:
        return None
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(trace)]
    modules = [owner for owner in owners if isinstance(owner, torch.nn.Module)]
    if not modules:
        return None
    names = {id(module): name for name, module in modules[0].named_modules()}
    return names.get(id(modules[-1])) or type(modules[-1]).__name__


if __name__ == "__main__":
    main()
