"""All checks of a release, cheap ones first; a check is skipped where one that it needs did not pass."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from cerebras_jais.errors import UserError
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.gate import configs, files, llama_cpp, running, tokenizer, weights
from checkpoint_convert.gate.published import known_problems, repair_commands
from checkpoint_convert.gate.report import Check, Problems, Report, Skipped, Status
from checkpoint_convert.gate.subject import Subject
from checkpoint_convert.streaming.run import Progress


@dataclass(frozen=True)
class _Step:
    """A check: what it does, and the checks without which it means nothing."""

    name: str
    check: Callable[[Subject, Progress], str]
    needs: tuple[str, ...] = ()


def _alone(check: Callable[[Subject], str]) -> Callable[[Subject, Progress], str]:
    return lambda subject, progress: check(subject)


_RUNS = ("config", "weights", "values", "code")
_STEPS = (
    _Step("json", _alone(files.check_json)),
    _Step("manifest", _alone(files.check_manifest_files), ("json",)),
    _Step("code", _alone(files.check_code), ("json",)),
    _Step("config", _alone(configs.check_config), ("json",)),
    _Step("generation", _alone(configs.check_generation_config), ("json",)),
    _Step("tokenizer", _alone(tokenizer.check_tokenizer), ("json", "config")),
    _Step("template", _alone(tokenizer.check_template), ("json",)),
    _Step("card", _alone(files.check_card), ("json",)),
    _Step("weights", _alone(weights.check_weights), ("json", "config")),
    _Step("values", _alone(weights.check_values), ("weights",)),
    _Step("loading", _alone(running.check_loading), _RUNS),
    _Step("logits", running.check_logits, _RUNS),
    _Step("cache", _alone(running.check_generation), ("loading",)),
    _Step("bits per byte", _alone(running.check_bits_per_byte), ("loading", "tokenizer")),
    _Step("gguf", llama_cpp.check_gguf, ("logits", "tokenizer")),
)
NAMES = tuple(step.name for step in _STEPS)


def check_release(
    path: Path | str,
    *,
    allow_pickle: bool = False,
    trust_release_code: bool = False,
    large: bool = False,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Check a release before it is published, or a published one.

    Args:
        path: the directory.
        allow_pickle: whether weights in pickle files may be read; no code in them is run.
        trust_release_code: run the code in the release even if it is not a version of this package's.
        large: also run a model of more than 8 GB in float32; its weights are then in memory.
        progress: called as weights are read.

    Raises:
        ConversionError: the path is no directory. What is wrong with a release is in the report.
    """
    subject = Subject(Path(path), allow_pickle, trust_release_code, large)
    if not subject.path.is_dir():
        raise ConversionError(f"{path}: is not a directory; give a release, a directory with config.json and weights")
    checks: dict[str, Check] = {}
    trusted = {"code"} if trust_release_code else set()
    try:
        for step in _STEPS:
            checks[step.name] = _checked(step, subject, checks, trusted, progress)
    finally:
        subject.close()
    published = subject.is_published
    known: tuple[str, ...] = ()
    repair: tuple[str, ...] = ()
    if published and checks["json"].status == "ok":
        known = tuple(known_problems(subject))
        repair = repair_commands(subject)
    return Report(subject.path, published, tuple(checks.values()), known, repair)


def _checked(
    step: _Step, subject: Subject, done: dict[str, Check], trusted: Collection[str], progress: Progress
) -> Check:
    unmet = [name for name in step.needs if done[name].status != "ok" and name not in trusted]
    if unmet:
        was = " and ".join(f"{name} {'failed' if done[name].status == 'failed' else 'was skipped'}" for name in unmet)
        return Check(step.name, "skipped", (was,))
    status: Status = "ok"
    texts: tuple[str, ...]
    try:
        texts = (step.check(subject, progress),)
    except Skipped as reason:
        status, texts = "skipped", (str(reason),)
    except Problems as found:
        status, texts = "failed", found.problems
    except UserError as error:
        status, texts = "failed", (str(error),)
    return Check(step.name, status, texts)
