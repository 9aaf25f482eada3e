"""A data run from its YAML to its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cerebras_jais.data.recipe.decontaminate import read_evaluation
from cerebras_jais.data.recipe.duplicates import duplicate_stages
from cerebras_jais.data.recipe.folder import RunFolder, folder_of, read_json, running
from cerebras_jais.data.recipe.inputs import Inputs, find_inputs
from cerebras_jais.data.recipe.packing import packing_stages
from cerebras_jais.data.recipe.prepare import Prepare, load_tools
from cerebras_jais.data.recipe.settings import DataRun
from cerebras_jais.data.recipe.summary import REPORT, FinishStores, Report
from cerebras_jais.data.recipe.workers import Progress, Stage, Workers, failure_of, run_locally
from cerebras_jais.data.tokenizer import end_of_text_id, load_tokenizer
from cerebras_jais.files import MIB

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A phase is packed in parts of a third of a shard's text: ten thousand documents fill rows well, and few shards keep
# more workers than that busy.
_PARTS_OF_A_SHARD = 3


def build(
    run: DataRun, progress: Progress, note: Callable[[str], None], workers: Workers | None = None
) -> dict[str, Any] | list[str]:
    """Carry a run out and return its report, or the ids of the jobs where Slurm will.

    `workers` may be given so that they have begun to import before; they are ended here.

    The same call goes on where an earlier one was ended. Raises DataError, UserError and OSError for what a user can
    mend; what is finished is kept.
    """
    folder = folder_of(run)
    inputs = find_inputs(run.sources, run.shard_mib * MIB)
    for line in inputs.notes:
        note(line)
    tokenizer = _checked(run, note)
    with running(folder, inputs):
        stages = _stages(run, folder, inputs, tokenizer)
        if run.executor.slurm is not None:
            from cerebras_jais.data.recipe.executors import submit_to_slurm

            for stage in stages:
                if (said := failure_of(stage.logs)) is not None:
                    note(f"{stage.name}: a task failed and is submitted again; it said: {said}")
            if jobs := submit_to_slurm(stages, folder.work, run, run.executor.slurm):
                return jobs
        elif run.executor.ray is not None:
            from cerebras_jais.data.recipe.executors import run_on_ray

            run_on_ray(stages, run, progress)
        else:
            folder.remove_abandoned()
            with workers or Workers() as processes:
                run_locally(stages, run.workers, progress, processes)
    report: dict[str, Any] = read_json(folder.output / REPORT)
    return report


def _checked(run: DataRun, note: Callable[[str], None]) -> Tokenizer:
    """The tokenizer; raises what is wrong with it before a folder is made, and with a model before jobs are submitted.

    What is wrong with a model is else said by the workers, at once, so that it is not loaded here for nothing.
    """
    tokenizer = load_tokenizer(run.tokenizer)
    end_of_text_id(tokenizer, run.tokenizer)
    if run.executor.slurm is not None or run.executor.ray is not None:
        load_tools(run)
    if run.steps.decontaminate is not None:
        evaluation = read_evaluation(run.steps.decontaminate)
        if evaluation.too_short:
            note(
                f"decontaminate: {evaluation.too_short} of {evaluation.texts} texts have fewer than {evaluation.words} "
                "words and are not looked for"
            )
    return tokenizer


def _stages(run: DataRun, folder: RunFolder, inputs: Inputs, tokenizer: Tokenizer) -> list[Stage]:
    """All stages of a run in their order."""
    shards = len(inputs.shards)
    parts = max(1, round(_PARTS_OF_A_SHARD * sum(shard.size for shard in inputs.shards) / (run.shard_mib * MIB)))
    stages = [
        Stage("prepare", shards, (Prepare(run, folder),), folder.stages / "prepare"),
        *duplicate_stages(run, folder, shards),
        Stage("store", 1, (FinishStores(run, folder, shards),), folder.stages / "store"),
    ]
    for name in run.phases:
        stages += packing_stages(run, folder, name, parts, tokenizer)
    every = "".join(digest[:6] for digest in folder.phases.values())[:60]
    return [*stages, Stage("report", 1, (Report(run, folder, shards),), folder.stages / f"report-{every}")]


def input_lines(run: DataRun) -> Iterator[str]:
    """What a run would read, as text for a user."""
    inputs = find_inputs(run.sources, run.shard_mib * MIB)
    files = {
        name: {part.file for shard in inputs.shards if shard.source == name for part in shard.parts}
        for name in run.sources
    }
    shards = Counter(shard.source for shard in inputs.shards)
    for name, found in files.items():
        size = sum(int(inputs.identities[file][0]) for file in found)
        yield f"{name}: {len(found)} files, {size / MIB:.1f} MiB, {shards[name]} shards"
    yield from inputs.notes
