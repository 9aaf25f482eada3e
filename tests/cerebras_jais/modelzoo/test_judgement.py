"""`config check` judges YAML as the Model Zoo's own validation and trainer do, or docs/config-check.md says why not.

Contract: of every YAML that the Model Zoo ships for jais and llama, of the variants, and of what its trainer writes
into a run's folder, the check and the Model Zoo say the same, but for the rows of two tables of the docs. Every name
that the Model Zoo offers a YAML is known here, and none that it does not have.
"""

import inspect
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.commands.config import check_file
from cerebras_jais.config import modelzoo_only as aside
from cerebras_jais.config.callbacks import HONOURED, LOGGERS, LOGGERS_WITHOUT_EFFECT, NOT_HERE, WITHOUT_EFFECT
from cerebras_jais.config.yaml_file import read_yaml
from cerebras_jais.model.outside import RATE_GROUPS, is_default
from tests.cerebras_jais.launch.test_checks import rows_under
from tests.cerebras_jais.launch.variants import GOOD, REFUSED, VARIANTS, base, judge, same_model
from tests.cerebras_jais.modelzoo.judging import its_validation, validated
from tests.cerebras_jais.modelzoo.runs import require_modelzoo
from tests.cerebras_jais.modelzoo.test_validate import make_data_directories

pytestmark = pytest.mark.modelzoo

WRITTEN = Path(__file__).parents[1] / "launch" / "trainer_params"
SHIPPED_LINE = re.compile(r"""^ *name: ["']?(jais|llama)["']?\s*$""", re.M)


@pytest.fixture(scope="module")
def modelzoo():
    """Its module of validation."""
    require_modelzoo()
    with its_validation() as validate:
        yield validate


@pytest.fixture(scope="module")
def refusals():
    """Name of a variant -> why the Model Zoo refuses it, or None."""
    require_modelzoo()
    command = [sys.executable, str(Path(__file__).with_name("judging.py"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def rates_of(config):
    """The schedules of a trainer, without the milestones, which follow from them."""
    return [schedule.model_dump(exclude={"milestones"}) for schedule in config.init.schedulers]


# ---- one-edit variants -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_a_variant_is_judged_by_the_model_zoo_as_the_table_says(variant, refusals):
    assert (refusals[variant.name] is None) == variant.modelzoo, refusals[variant.name]


# ---- what the Model Zoo ships and writes -----------------------------------------------------------------------------


def shipped():
    """Every trainer YAML of the installed Model Zoo that names jais or llama, by its path in it; empty without one."""
    try:
        import cerebras.modelzoo
    except ImportError:
        return {}
    (root,) = map(Path, cerebras.modelzoo.__path__)
    found = {}
    for path in sorted(root.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if re.search("^trainer:", text, re.M) and SHIPPED_LINE.search(text):
            found[str(path.relative_to(root))] = path
    return found


def test_every_yaml_that_the_model_zoo_ships_is_judged_as_it_judges_it_or_the_docs_say_why(modelzoo):
    from cerebras_jais.modelzoo.validate import modelzoo_problems

    documented = {row[0].strip("`"): row[2] for row in rows_under("Shipped with the Model Zoo")}
    files = shipped()
    assert len(files) >= 20
    differing = set()
    for name, path in files.items():
        assert modelzoo_problems(read_yaml(path)) == [], name
        if judge(path) != GOOD:
            differing.add(Path(name).name)
            (problem,), _ = check_file(path)
            assert documented[Path(name).name] in problem
    assert differing == set(documented)


@pytest.mark.parametrize("which", ["given", "whole"])
def test_what_its_trainer_writes_of_a_yaml_is_read_as_the_yaml_itself(which, modelzoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unset = which == "given"
    documents = [variant.document() for variant in VARIANTS if variant.check != REFUSED and variant.modelzoo]
    documents += [
        yaml.safe_load(path.read_text(encoding="utf-8")) for path in shipped().values() if judge(path) == GOOD
    ]
    for document in documents:
        make_data_directories(document)
        written = [
            {"trainer": c.model_dump(exclude_unset=unset, warnings=False)} for c in validated(modelzoo, document)
        ]
        dumped = written[0] if len(written) == 1 else {"trainer": written}
        for path, content in (("before.yaml", document), ("after.yaml", dumped)):
            Path(path).write_text(yaml.dump(content, sort_keys=False), encoding="utf-8")
        before, after = read_trainer_yaml("before.yaml"), read_trainer_yaml("after.yaml")
        assert all(map(same_model, after, before))
        assert [rates_of(c) for c in after] == [rates_of(c) for c in before]
        assert [[a.what for a in c.aside] for c in after] == [[a.what for a in c.aside] for c in before]
        assert judge("after.yaml") == judge("before.yaml")


def test_the_examples_of_what_its_trainer_writes_have_its_keys(modelzoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documents = {which: yaml.safe_load((WRITTEN / f"{which}.yaml").read_text()) for which in ("given", "whole")}
    make_data_directories(documents["given"])
    (config,) = validated(modelzoo, documents["given"])
    for which, unset in (("given", True), ("whole", False)):
        written, example = config.model_dump(exclude_unset=unset, warnings=False), documents[which]["trainer"]
        assert written.keys() == example.keys()
        assert written["init"].keys() == example["init"].keys()
        for part in ("model", "loop", "checkpoint", "precision", "logging", "optimizer"):
            assert written["init"][part].keys() == example["init"][part].keys(), part
        assert written["fit"]["train_dataloader"].keys() == example["fit"]["train_dataloader"].keys()


# ---- names -----------------------------------------------------------------------------------------------------------


def names(base_class, *, usable=lambda c: True):
    from cerebras.appliance.utils.classes import retrieve_all_subclasses

    return {c.__name__ for c in retrieve_all_subclasses(base_class) if usable(c)}


def test_optimizers_and_schedules_are_those_that_the_model_zoo_offers(modelzoo):
    import cerebras.pytorch as cstorch

    rates = {*aside.RATE_SCHEDULES, *aside.OTHER_RATE_SCHEDULES}
    assert {*aside.OPTIMIZERS, *aside.OTHER_OPTIMIZERS} == names(cstorch.optim.Optimizer)
    assert rates == names(cstorch.optim.lr_scheduler.LRScheduler)
    assert set(aside.WEIGHT_DECAY_SCHEDULES) == names(cstorch.optim.weight_decay_scheduler.WeightDecayScheduler)


def arguments_of_harness_data():
    """What a harness reads of its further arguments, and what it passes on to its data processor."""
    from cerebras.modelzoo.data.nlp.gpt.config import InferenceDataProcessorConfig
    from cerebras.modelzoo.trainer.extensions import eval_harness_adapter

    read = re.findall(r'dataloader_args\.(?:get|pop)\(\s*"(\w+)"', inspect.getsource(eval_harness_adapter))
    given = {"shuffle"}  # by its tutorials, and never read
    return {*read, *InferenceDataProcessorConfig.model_fields, *given} - {"data_processor"}


def test_callbacks_and_loggers_are_those_that_the_model_zoo_offers_with_their_arguments(modelzoo):
    import cerebras.modelzoo.trainer.extensions  # noqa: F401  # the Model Zoo does so when it first validates a YAML
    from cerebras.appliance.utils.classes import retrieve_all_subclasses
    from cerebras.modelzoo.trainer.callbacks import Callback, CoreCallback
    from cerebras.modelzoo.trainer.loggers import Logger

    bigcode = {"BigCodeEvalHarness", "ScopedBigCodeEvalHarnessFlags"}  # made only where bigcode_eval is installed
    known = {**HONOURED, **WITHOUT_EFFECT, **dict.fromkeys(NOT_HERE)}
    loggers = {**LOGGERS, **LOGGERS_WITHOUT_EFFECT}

    def for_a_yaml(kind):
        return not (
            issubclass(kind, CoreCallback | Logger)
            or inspect.isabstract(kind)
            or kind.__name__[0] == "_"
            or "<" in kind.__qualname__
        )

    assert names(Callback, usable=for_a_yaml) - bigcode == {*known} - bigcode
    assert names(Logger) == set(loggers)
    for kind in retrieve_all_subclasses(Callback):
        keys = {**known, **loggers}.get(kind.__name__)
        if keys is not None:
            taken = inspect.signature(kind).parameters.values()
            named = {p.name for p in taken if p.kind is not inspect.Parameter.VAR_KEYWORD}
            passed_on = arguments_of_harness_data() if len(named) < len(taken) else set()
            assert named | passed_on == set(keys), kind.__name__


@pytest.mark.parametrize("name", ["jais", "llama", "jais_family", "jais_adapted"])
def test_data_processors_are_those_of_the_models(name, modelzoo):
    from cerebras.modelzoo.registry import registry

    known = {*aside.DATA_PROCESSORS, *aside.OTHER_DATA_PROCESSORS}
    assert set(registry.get_data_processors_map(name)) == known


def test_the_rate_groups_known_as_default_are_those_that_the_model_zoo_makes(modelzoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = base()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_data_directories(document)
        (config,) = validated(modelzoo, document)
    made = config.init.model.model_dump()[RATE_GROUPS]
    assert is_default(RATE_GROUPS, made)
    made["embedding"]["scale"] = 0.5
    assert not is_default(RATE_GROUPS, made)
