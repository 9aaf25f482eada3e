"""Stages of tasks, carried out by datatrove's executors: by Slurm or by Ray. `workers` has those of this machine."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.stats import PipelineStats

from cerebras_jais.data.documents import DataError
from cerebras_jais.data.recipe.minhash import load_datatrove
from cerebras_jais.data.recipe.settings import DataRun, Slurm
from cerebras_jais.data.recipe.workers import Progress, Stage, carry_out, failure_of
from cerebras_jais.files import shown_path

_NO_REASON = "no reason is known; the workers must be able to import this package and see the same files"


class _Tasks(PipelineExecutor):  # type: ignore[misc]  # datatrove has no types
    """One task, as both executors here carry it out: as this machine's workers do, with datatrove's counts beside."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        if self.is_rank_completed(rank):
            return PipelineStats()
        load_datatrove()
        carry_out(Stage("", self.world_size, tuple(self.pipeline), Path(self.logging_dir.path)), rank)
        stats = PipelineStats(self.pipeline)
        with self.logging_dir.open(f"stats/{rank:05d}.json", "w") as file:
            stats.save_to_disk(file)
        return stats


# ---- Slurm ----------------------------------------------------------------------------------------------------------


class _Slurm(_Tasks, SlurmPipelineExecutor):  # type: ignore[misc]  # datatrove has no types
    def launch_merge_stats(self) -> None:
        """The report is made from the files of the tasks, so no job merges datatrove's own counts."""


def submit_to_slurm(stages: Sequence[Stage], folder: Path, run: DataRun, options: Slurm) -> list[str]:
    """Submit one array of jobs for each stage, each behind the one before; their ids.

    Only tasks that are not done are submitted, so the same call goes on with a run of which tasks have failed. Raises
    DataError where sbatch is not there or refuses, and where jobs of an earlier call still wait or run.
    """
    if shutil.which("sbatch") is None:
        raise DataError(
            "sbatch is not on the PATH; start this on a machine that submits to Slurm, or use executor: local"
        )
    record = folder / "slurm_jobs.json"
    if waiting := _still_queued(record):
        raise DataError(
            f"{shown_path(folder)}: its jobs {', '.join(waiting)} wait or run; let them end, or scancel them"
        )
    load_datatrove()
    before: _Slurm | None = None
    ids: list[str] = []
    for stage in stages:
        executor = _Slurm(
            list(stage.steps),
            tasks=stage.tasks,
            time=options.time,
            partition=options.partition,
            mem_per_cpu_gb=options.memory_gb,
            workers=run.workers,
            job_name=f"data_{stage.name}",
            qos=options.qos,
            env_command=options.environment or f'export PATH="{Path(sys.executable).parent}:$PATH"',
            sbatch_args=dict(options.options),
            max_array_size=options.largest_array,
            depends=before,
            logging_dir=str(stage.logs),
            with_srun=options.srun,
        )
        try:
            executor.launch_job()
        except (subprocess.CalledProcessError, OSError) as error:
            raise DataError(f"sbatch refused the stage {stage.name}: {error}; see what it printed") from error
        if executor.job_id != -1:
            ids.append(str(executor.job_id))
            record.write_text(json.dumps(ids) + "\n", encoding="utf-8")
        before = executor
    return ids


def _still_queued(record: Path) -> list[str]:
    if not record.exists() or shutil.which("squeue") is None:
        return []
    ids = json.loads(record.read_text(encoding="utf-8"))
    if not ids:
        return []
    listed = subprocess.run(["squeue", "-h", "-o", "%A", "-j", ",".join(ids)], capture_output=True, text=True)
    return sorted(set(listed.stdout.split()) & set(ids)) if listed.returncode == 0 else []


# ---- Ray ------------------------------------------------------------------------------------------------------------


class _Ray(_Tasks, RayPipelineExecutor):  # type: ignore[misc]  # datatrove has no types
    pass


def run_on_ray(stages: Sequence[Stage], run: DataRun, progress: Progress) -> None:
    """Carry stages out on a Ray cluster, or on one that is started here and ends with this process."""
    import ray

    options = run.executor.ray
    assert options is not None
    load_datatrove()
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        number = None if options.address else run.workers
        ray.init(address=options.address, num_cpus=number, log_to_driver=False, logging_level=logging.ERROR)
    try:
        for stage in stages:
            progress(stage, 0)
            executor = _Ray(
                list(stage.steps),
                tasks=stage.tasks,
                workers=run.workers,
                logging_dir=str(stage.logs),
                mem_per_cpu_gb=options.memory_gb,
            )
            failure = None
            try:
                executor.run()
            except Exception as error:  # of any class of Ray's; what a task said is in its folder
                failure = error
            left = len(executor.get_incomplete_ranks())
            if left:
                lines = str(failure or "").strip().splitlines()[-1:]
                said = failure_of(stage.logs) or " ".join(lines)[:300] or _NO_REASON
                raise DataError(f"{left} of {stage.tasks} tasks of the stage {stage.name} failed on Ray: {said}")
            progress(stage, stage.tasks)
    finally:
        if started:
            ray.shutdown()
