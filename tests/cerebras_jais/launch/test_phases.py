"""Where a launch begins.

Contract: read from the checkpoints on disk alone; finished phases are skipped, a half-finished one goes on with all of
its state, the next begins from the last one's end without its data position and schedules, and without its optimizer
where other tensors train; lists that could not be continued are refused by key and remedy.
"""

from pathlib import Path

import numpy as np
import pytest

from cerebras_jais.checkpoint import save_checkpoint
from cerebras_jais.config.trainer import parse_trainer
from cerebras_jais.errors import UserError
from cerebras_jais.launch.estimate import describe_launch
from cerebras_jais.launch.phases import plan_phases
from cerebras_jais.launch.saved import EVERYTHING
from cerebras_jais.launch.start import Start, next_phase, plan_launch, remaining_phases, start_of
from tests.cerebras_jais.model.examples import llama_section
from tests.cerebras_jais.train.examples import trainer_section

CHECKPOINT_KEYS = ("dataloader", "global_step", "model", "optimizer", "schedulers")


def config(folder, *, model_dir="run", loop=None, states=None, frozen=(), checkpoint=None, at=("trainer",), **fit):
    section = trainer_section(folder)
    init = section["init"]
    init["model"] = llama_section(name="jais_adapted", **({"frozen_parameters": list(frozen)} if frozen else {}))
    init["model_dir"] = str(folder / model_dir)
    init["loop"] = loop
    init["checkpoint"] = checkpoint or {"steps": 2}
    if states:
        init["callbacks"] = [{"LoadCheckpointStates": {"load_checkpoint_states": states}}]
    section["fit"].update(fit)
    return parse_trainer(section, at=at)


def save(path, step, states=CHECKPOINT_KEYS):
    path.parent.mkdir(parents=True, exist_ok=True)
    state = dict.fromkeys(states, np.zeros(1, np.float32))
    if "global_step" in states:
        state["global_step"] = step
    save_checkpoint(path, state)
    return path


@pytest.fixture
def counted(tmp_path):
    """Three phases in one folder, whose steps continue."""
    return [config(tmp_path, loop=loop) for loop in ({"max_steps": 4}, {"num_steps": 4}, {"max_steps": 12})]


def test_steps_continue_from_the_previous_phase(counted):
    assert [(phase.begins, phase.ends) for phase in plan_phases(counted)] == [(0, 4), (4, 8), (8, 12)]


@pytest.mark.parametrize(
    ("on_disk", "index", "loads"),
    [
        ([], 0, None),
        ([2], 0, EVERYTHING),
        ([2, 4], 1, ("global_step", "model", "optimizer")),
        ([6], 1, EVERYTHING),
        ([2, 4, 6, 8], 2, ("global_step", "model", "optimizer")),
        ([10], 2, EVERYTHING),
        ([12], 3, EVERYTHING),
    ],
)
def test_a_launch_begins_where_the_checkpoints_stop(tmp_path, counted, on_disk, index, loads):
    for step in on_disk:
        save(tmp_path / "run" / f"checkpoint_{step}.mdl", step)
    found, start = next_phase(plan_phases(counted))
    assert found == index
    if on_disk:
        assert start.checkpoint == tmp_path / "run" / f"checkpoint_{on_disk[-1]}.mdl"
        assert start.states == loads
    else:
        assert start == Start(None)


def test_a_finished_list_says_so_and_has_no_work(tmp_path, counted):
    save(tmp_path / "run" / "checkpoint_12.mdl", 12)
    said = []
    assert list(remaining_phases(plan_launch(counted), said.append)) == []
    assert [line.split(":")[0] for line in said[:3]] == ["phase 1 of 3", "phase 2 of 3", "phase 3 of 3"]
    assert said[3].startswith("nothing is left to train: ")


def test_a_list_capped_by_max_steps_leaves_the_rest_for_later(tmp_path, counted):
    phases = plan_phases(counted, max_steps=6)
    assert [(phase.begins, phase.ends) for phase in phases] == [(0, 4), (4, 6), (6, 6)]
    save(tmp_path / "run" / "checkpoint_6.mdl", 6)
    assert list(remaining_phases(plan_launch(counted, max_steps=6), lambda line: None)) == []
    assert next_phase(plan_phases(counted))[0] == 1


def staged(folder):
    return [
        config(folder, model_dir="s/1", loop={"max_steps": 4}, frozen=["decoder"], ckpt_path=str(folder / "base.mdl")),
        config(
            folder,
            model_dir="s/2",
            loop={"max_steps": 6},
            states="model",
            ckpt_path=str(folder / "s" / "1" / "checkpoint_4.mdl"),
        ),
    ]


def test_stages_in_folders_of_their_own_count_their_own_steps(tmp_path):
    save(tmp_path / "base.mdl", 0, ("model",))
    phases = plan_phases(staged(tmp_path))
    assert [(phase.begins, phase.ends) for phase in phases] == [(0, 4), (0, 6)]
    assert next_phase(phases) == (0, Start(tmp_path / "base.mdl", None, "ckpt_path"))
    save(tmp_path / "s" / "1" / "checkpoint_4.mdl", 4)
    index, start = next_phase(phases)
    assert (index, start.checkpoint.name, start.states) == (1, "checkpoint_4.mdl", ("model",))
    save(tmp_path / "s" / "2" / "checkpoint_2.mdl", 2)
    index, start = next_phase(phases)
    assert (index, start.checkpoint.name, start.states) == (1, "checkpoint_2.mdl", EVERYTHING)
    save(tmp_path / "s" / "2" / "checkpoint_6.mdl", 6)
    assert next_phase(phases)[0] == 2


def test_another_model_dir_keeps_the_folders_of_phases_apart(tmp_path):
    save(tmp_path / "base.mdl", 0, ("model",))
    phases = plan_phases(staged(tmp_path), model_dir=tmp_path / "other")
    assert [phase.model_dir for phase in phases] == [tmp_path / "other" / "1", tmp_path / "other" / "2"]
    # ckpt_path of the second names what the first leaves, which is elsewhere now, under whatever name.
    save(tmp_path / "other" / "1" / "checkpoint_4_20250101_000000.mdl", 4)
    assert start_of(phases, 1).checkpoint == tmp_path / "other" / "1" / "checkpoint_4_20250101_000000.mdl"


def test_the_optimizer_of_a_frozen_phase_stays_behind(tmp_path):
    configs = [config(tmp_path, loop={"max_steps": 4}, frozen=["decoder"]), config(tmp_path, loop={"max_steps": 8})]
    save(tmp_path / "run" / "checkpoint_4.mdl", 4)
    _, start = next_phase(plan_phases(configs))
    assert start.states == ("global_step", "model")
    assert "the optimizer state is not loaded" in str(start)


def test_a_checkpoint_on_the_command_line_counts_for_more_than_the_folders(tmp_path, counted):
    save(tmp_path / "run" / "checkpoint_12.mdl", 12)
    middle = save(tmp_path / "elsewhere.mdl", 4)
    index, start = next_phase(plan_phases(counted, checkpoint=middle), middle)
    assert (index, start.checkpoint, start.states) == (1, middle, ("global_step", "model", "optimizer"))


def test_ckpt_path_is_only_where_a_run_began(tmp_path):
    base = save(tmp_path / "base.mdl", 0, ("model",))
    one = [config(tmp_path, loop={"max_steps": 6}, states="model", ckpt_path=str(base))]
    assert next_phase(plan_phases(one)) == (0, Start(base, None, "ckpt_path"))
    save(tmp_path / "run" / "checkpoint_4.mdl", 4)
    index, start = next_phase(plan_phases(one))
    assert (index, start.checkpoint.name, start.states) == (0, "checkpoint_4.mdl", EVERYTHING)
    save(tmp_path / "run" / "checkpoint_6.mdl", 6)
    assert next_phase(plan_phases(one))[0] == 1
    # A ckpt_path in the run's own folder goes back to that step, as in the Model Zoo.
    back = [config(tmp_path, loop={"max_steps": 6}, ckpt_path=str(tmp_path / "run" / "checkpoint_4.mdl"))]
    assert next_phase(plan_phases(back)) == (0, Start(tmp_path / "run" / "checkpoint_4.mdl", None, "ckpt_path"))


REFUSED = {
    "no-end": ({"loop": {"num_epochs": 1}}, r"init\.loop: .*give max_steps"),
    "no-checkpoint": ({"checkpoint": {"steps": 0}}, r"init\.checkpoint\.steps: .*give steps"),
    "no-autoload": (
        {"checkpoint": {"steps": 2, "autoload_last_checkpoint": False}},
        r"autoload_last_checkpoint: .*remove it",
    ),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_a_list_that_cannot_be_continued_is_refused(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        plan_phases([config(tmp_path, **{"loop": {"max_steps": 4}, **change}), config(tmp_path, loop={"max_steps": 8})])


def test_phases_whose_checkpoints_could_not_be_told_apart_are_refused(tmp_path):
    first, second = config(tmp_path, loop={"max_steps": 4}), ("trainer", 1, "trainer")
    with pytest.raises(UserError, match=r"trainer\[1\].*max_steps: must be larger than 4 \(steps continue"):
        plan_phases([first, config(tmp_path, loop={"max_steps": 4}, at=second)])
    with pytest.raises(UserError, match=r"trainer\[1\].*model_dir: phase 1 writes to the same folder"):
        plan_phases([first, config(tmp_path, loop={"max_steps": 4}, states="model", at=second)])


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.mdl: no such checkpoint"):
        next_phase(plan_phases([config(tmp_path, loop={"max_steps": 4})]), Path("nowhere.mdl"))


def test_a_stage_cut_short_is_gone_on_with_and_the_next_not_begun(tmp_path):
    save(tmp_path / "base.mdl", 0, ("model",))
    cut = plan_launch(staged(tmp_path), max_steps=2)
    assert [(phase.begins, phase.ends) for phase in cut.phases] == [(0, 2), (0, 0)]
    assert [phase.number for phase, _ in remaining_phases(cut, lambda line: None)] == [1]
    save(tmp_path / "s" / "1" / "checkpoint_2.mdl", 2)
    cut = plan_launch(staged(tmp_path), max_steps=2)
    assert list(remaining_phases(cut, lambda line: None)) == []
    assert "  not reached: the launch ends before it" in describe_launch(cut)
    index, start = next_phase(plan_phases(staged(tmp_path)))
    assert (index, start.checkpoint.name) == (0, "checkpoint_2.mdl")


def test_phases_with_one_checkpoint_root_tell_their_checkpoints_apart_by_step(tmp_path):
    root = {"steps": 2, "checkpoint_root": str(tmp_path / "root")}
    both = [
        config(tmp_path, model_dir="a", loop={"max_steps": 4}, checkpoint=root),
        config(tmp_path, model_dir="b", loop={"max_steps": 8}, checkpoint=root),
    ]
    save(tmp_path / "root" / "checkpoint_4.mdl", 4)
    index, start = next_phase(plan_phases(both))
    assert (index, start.states) == (1, ("global_step", "model", "optimizer"))


def test_a_run_that_does_not_autoload_begins_at_its_ckpt_path(tmp_path):
    base = save(tmp_path / "base.mdl", 0, ("model",))
    save(tmp_path / "run" / "checkpoint_4.mdl", 4)
    off = {"steps": 2, "autoload_last_checkpoint": False}
    one = [config(tmp_path, loop={"max_steps": 6}, states="model", ckpt_path=str(base), checkpoint=off)]
    assert next_phase(plan_phases(one)) == (0, Start(base, None, "ckpt_path"))


def two_sizes(folder, **second):
    """Two phases whose second has a layer less."""
    first, other = config(folder, loop={"max_steps": 4}), trainer_section(folder)
    other["init"] |= {
        "model": llama_section(name="jais_adapted", num_hidden_layers=first.init.model.num_hidden_layers - 1),
        "model_dir": str(folder / "run"),
        "loop": {"max_steps": 8},
        "checkpoint": {"steps": 2, **second.pop("checkpoint", {})},
        **second.pop("init", {}),
    }
    other["fit"] |= second
    return [first, parse_trainer(other, at=("trainer", 1, "trainer"))]


def test_a_phase_whose_model_does_not_fit_the_weights_of_the_one_before_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"trainer\[1\].*model\.num_hidden_layers: is 1 here and 2 in phase 1"):
        plan_launch(two_sizes(tmp_path))
    save(tmp_path / "elsewhere" / "checkpoint_4.mdl", 4)
    plan_launch(two_sizes(tmp_path, ckpt_path=str(tmp_path / "elsewhere" / "checkpoint_4.mdl")))
    plan_launch(two_sizes(tmp_path, checkpoint={"disable_strict_checkpoint_loading": True}))
    states = [{"LoadCheckpointStates": {"load_checkpoint_states": "global_step"}}]
    plan_launch(two_sizes(tmp_path, init={"callbacks": states}))


def test_a_last_checkpoint_that_cannot_be_read_is_named_with_the_way_to_go_on(tmp_path, counted):
    save(tmp_path / "run" / "checkpoint_2.mdl", 2)
    damaged = tmp_path / "run" / "checkpoint_4.mdl"
    damaged.write_bytes(b"no HDF5")
    for configs in (counted, [config(tmp_path, loop={"max_steps": 6})]):
        with pytest.raises(UserError, match=r"checkpoint_4\.mdl: .*; move it away, and the run continues from the one"):
            plan_launch(configs)
    damaged.unlink()
    assert plan_launch(counted).start.checkpoint == tmp_path / "run" / "checkpoint_2.mdl"
