"""`fit` refuses what does not fit before it writes a file.

Contract: every wrong input ends in one UserError of one line, which names it, and leaves no model directory behind.
"""

import copy

import h5py
import pytest

from cerebras_jais.checkpoint import open_checkpoint, save_checkpoint
from cerebras_jais.config.trainer import parse_trainer
from cerebras_jais.errors import UserError
from cerebras_jais.model.decoder import LanguageModel
from tests.cerebras_jais.train.examples import config_of, train, trainer_section


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(folder, monkeypatch):
    real = LanguageModel.forward
    monkeypatch.setattr(LanguageModel, "forward", lambda self, batch: real(self, batch) * float("nan"))
    with pytest.raises(UserError, match="loss is nan at step 1;"):
        train(config_of(folder))
    assert not list((folder / "run").glob("*.mdl"))


def broken(folder, change):
    section = trainer_section(folder)
    change(section)
    return parse_trainer(section)


def change_model(**values):
    return lambda section: section["init"]["model"].update(values)


WRONG = {
    "missing-data": (
        lambda s: s["fit"]["train_dataloader"].update(data_dir="nowhere"),
        "nowhere",
    ),
    "missing-held-out-data": (lambda s: s["fit"]["val_dataloader"].update(data_dir="nowhere"), "nowhere"),
    "small-vocabulary": (change_model(vocab_size=60), "vocabulary of 60"),
    "wrong-length": (change_model(max_position_embeddings=64), "32 tokens, model.max_position_embeddings is 64"),
    "packed-data-wanted": (lambda s: s["fit"]["train_dataloader"].update(use_vsl=True), "use_vsl"),
    "no-optimizer": (lambda s: s["init"].pop("optimizer"), "trainer.init.optimizer: missing"),
    "no-data": (lambda s: s.pop("fit"), "trainer.fit: missing"),
    "unknown-scale": (
        lambda s: s["init"]["optimizer"]["AdamW"].update(adjust_learning_rate={"head": 0.5}),
        "no such group",
    ),
    "missing-checkpoint": (lambda s: s["fit"].update(ckpt_path="nowhere.mdl"), "no such checkpoint"),
    "no-folder-for-checkpoints": (
        lambda s: s["init"]["checkpoint"].update(checkpoint_root="/proc/nowhere"),
        "/proc/nowhere: checkpoints cannot be written there (no such file or directory); give another folder",
    ),
    "a-file-for-checkpoints": (
        lambda s: s["init"]["checkpoint"].update(checkpoint_root=__file__),
        "checkpoints cannot be written there (file exists)",
    ),
    "a-long-name-of-checkpoints": (
        lambda s: s["init"]["checkpoint"].update(checkpoint_name="x" * 234 + "_{step}.mdl"),
        "checkpoint_name makes names of up to 256 bytes",
    ),
    "batches-beyond-the-epoch": (
        lambda s: s["init"].update(loop={"num_epochs": 1, "grad_accum_steps": 99}),
        "grad_accum_steps 99",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(folder, case):
    change, words = WRONG[case]
    with pytest.raises(UserError) as caught:
        train(broken(folder, change))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "run").exists()


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused_by_what_differs(folder):
    path = train(config_of(folder)).checkpoint_path
    for change, words in (
        (change_model(hidden_size=48, mup_base_hidden_size=16), "of another shape"),
        (change_model(num_hidden_layers=3), "layers.2"),
    ):
        with pytest.raises(UserError, match="does not fit the config") as caught:
            train(broken(folder, change), checkpoint=path, model_dir=folder / "other")
        assert words in str(caught.value)
        assert not (folder / "other").exists()


def test_a_truncated_checkpoint_is_refused(folder):
    path = train(config_of(folder)).checkpoint_path
    cut = folder / "cut.mdl"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError) as caught:
        train(config_of(folder), checkpoint=cut, model_dir=folder / "other")
    assert str(cut) in str(caught.value)
    assert not (folder / "other").exists()


@pytest.mark.slow
def test_other_data_other_release_and_a_finished_run_are_refused(folder):
    config = config_of(folder)
    path = train(config).checkpoint_path
    with pytest.raises(UserError, match="nothing is left to train"):
        train(config)
    other = broken(folder, lambda s: s["fit"]["train_dataloader"].update(shuffle_seed=9))
    with pytest.raises(UserError, match="shuffle_seed"):
        train(other, max_steps=9)
    with open_checkpoint(path) as checkpoint:
        state = copy.copy(checkpoint.tree)
        state = {key: state[key] for key in state}
        state["__metadata__"] = [{**state["__metadata__"][0], "version": "2.9.0"}]
        save_checkpoint(folder / "old.mdl", state)
    with pytest.raises(UserError, match=r"release 2\.9\.0"):
        train(config, checkpoint=folder / "old.mdl", max_steps=9)
    states = {"load_checkpoint_states": "model,grad_scaler"}
    wrong = config_of(folder, callbacks=[{"LoadCheckpointStates": states}])
    with pytest.raises(UserError, match="names grad_scaler"):
        train(wrong, max_steps=9)


def test_a_held_out_set_smaller_than_a_batch_is_refused(folder):
    with pytest.raises(UserError, match="fewer than one batch of 400; set drop_last: false") as caught:
        train(broken(folder, lambda s: s["fit"]["val_dataloader"].update(batch_size=400)))
    assert str(folder / "held_out") in str(caught.value)


def test_an_empty_loss_mask_is_named(folder):
    with h5py.File(folder / "train" / "a.h5", "r+") as file:
        file["data"][:, 1] = 0
    with pytest.raises(UserError, match=r"loss is nan at step 1; .*The loss mask of a whole batch of .*train is empty"):
        train(config_of(folder))
