"""`fit` trains as the YAML says and resumes exactly.

Contract: the loss falls on learnable data; a run stopped at any moment and started again gives, bit for bit, the losses
of a run never stopped, with dropout, packed rows and gradient accumulation too; accumulated batches count like one;
checkpoints, evaluations and files come when and where the YAML says.
"""

import csv

import h5py
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from cerebras_jais.checkpoint import open_checkpoint, save_checkpoint
from cerebras_jais.commands.fit import fit as fit_command
from cerebras_jais.config.trainer import parse_trainer
from cerebras_jais.errors import UserError
from cerebras_jais.launch.saved import saved_steps
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.load import load_model
from cerebras_jais.train.steps import Steps
from tests import tolerances
from tests.cerebras_jais.train.examples import JAIS, LLAMA, config_of, train, trainer_section, write_data, write_yaml


@pytest.mark.parametrize("model", [JAIS, LLAMA], ids=["jais", "llama"])
def test_the_loss_falls_and_checkpoint_records_and_curve_are_left_where_it_says(folder, model):
    config = config_of(
        folder, model, loop={"max_steps": 30, "eval_frequency": 15}, checkpoint={"steps": 20}, loggers=[]
    )
    result = train(config)
    run = folder / "run"
    assert result.steps == 30
    assert result.last_loss < 0.7 * result.first_loss
    assert result.eval_loss < 0.8 * result.first_loss
    assert result.evaluations[0].perplexity == pytest.approx(np.exp(result.eval_loss))
    assert sorted(p.name for p in run.glob("*.mdl")) == ["checkpoint_20.mdl", "checkpoint_30.mdl"]
    assert result.checkpoint_path == run / "checkpoint_30.mdl"
    assert (run / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "events").glob("events.out.tfevents.*"))
    rows = list(csv.DictReader((run / "losses.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 31))
    assert [float(row["loss"]) for row in rows] == result.losses
    assert [row["step"] for row in rows if row["eval_loss"]] == ["15", "30"]


@pytest.mark.slow
def test_the_checkpoint_holds_the_trained_model_and_says_what_it_is(folder):
    config = config_of(folder)
    result = train(config)
    with open_checkpoint(result.checkpoint_path) as checkpoint:
        assert list(checkpoint.tree) == [
            "model",
            "dataloader",
            "optimizer",
            "schedulers",
            "global_step",
            "__metadata__",
        ]
        (metadata,) = checkpoint.metadata
        assert metadata["version"] == "2.10.0"
        assert metadata["model_name"] == "JAISModel"
        assert metadata["params"] == config.to_dict()
        assert checkpoint.tree["dataloader"]["samples_streamed"] == 6 * 4
        assert checkpoint.tree["model"]["model.lm_head.weight"].linked_to is not None
    model = load_model(result.checkpoint_path)
    assert model.config == config.init.model


class Killed(BaseException):
    pass


def stop_after(monkeypatch, steps):
    """Make the loop die in the middle of the step after `steps`."""
    real, done = Steps._update, []

    def dying(self, optimizer):
        if len(done) == steps:
            raise Killed
        done.append(1)
        real(self, optimizer)

    monkeypatch.setattr(Steps, "_update", dying)
    return lambda: monkeypatch.setattr(Steps, "_update", real)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (JAIS, {}),
        ({**JAIS, "dropout_rate": 0.1, "attention_dropout_rate": 0.1}, {}),
        ({**JAIS, "embedding_dropout_rate": 0.3}, {}),
        (JAIS, {"drop_last": False, "pad_last": True}),
        (LLAMA, {"packed": True, "grad_accum_steps": 2}),
        (LLAMA, {"fp16_type": "bfloat16"}),
    ],
    ids=["plain", "dropout", "embedding-dropout", "padded-last", "packed-accumulated", "bfloat16"],
)
def test_a_run_killed_and_started_again_has_the_losses_of_one_never_killed(tmp_path, monkeypatch, model, changes):
    packed = changes.get("packed", False)
    write_data(tmp_path / "train", packed=packed, samples=20)
    section = trainer_section(tmp_path, model)
    section["init"]["loop"] = {"max_steps": 8, "grad_accum_steps": changes.get("grad_accum_steps", 1)}
    if "fp16_type" in changes:
        section["init"]["precision"] = {"fp16_type": changes["fp16_type"]}
    loader = section["fit"]["train_dataloader"]
    loader["use_vsl"] = packed
    if "pad_last" in changes:  # an epoch of 20 is five batches of 4; of 6 it is three and a padded one
        loader.update(batch_size=6, drop_last=False, pad_last=True)
    del section["fit"]["val_dataloader"]
    config = parse_trainer(section)
    whole = train(config, model_dir=tmp_path / "whole")
    mend = stop_after(monkeypatch, 5)
    with pytest.raises(Killed):
        train(config, model_dir=tmp_path / "killed")
    mend()
    resumed = train(config, model_dir=tmp_path / "killed")
    assert resumed.start_step == 3
    assert resumed.losses == whole.losses[3:]
    one = load_model(whole.checkpoint_path).state_dict()
    other = load_model(resumed.checkpoint_path).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "killed" / "losses.csv").open())]
    assert losses == whole.losses


@pytest.mark.slow
def test_accumulated_batches_count_like_one_large_batch(folder):
    # With loss_scaling batch_size every row weighs the same, so two batches of 2 are one of 4.
    model = {**JAIS, "loss_scaling": "batch_size", "loss_weight": 1 / 32}
    one = train(config_of(folder, model), model_dir=folder / "one")
    section = trainer_section(folder, model, loop={"max_steps": 6, "grad_accum_steps": 2})
    section["fit"]["train_dataloader"]["batch_size"] = 2
    two = train(parse_trainer(section), model_dir=folder / "two")
    np.testing.assert_allclose(one.losses, two.losses, atol=tolerances.SAME_IN_FLOAT32)


@pytest.mark.slow
def test_activation_checkpointing_changes_no_loss(folder):
    plain = train(config_of(folder), model_dir=folder / "a")
    saving = train(config_of(folder), model_dir=folder / "b", activation_checkpointing=True)
    assert plain.losses == saving.losses


@pytest.mark.slow
@pytest.mark.parametrize("fp16_type", ["bfloat16", "float16", "cbfloat16"])
def test_half_precision_on_a_cpu_is_bfloat16_and_trains(folder, fp16_type, capsys):
    config = config_of(folder, precision={"fp16_type": fp16_type}, loop={"max_steps": 20, "eval_frequency": None})
    result = train(config, progress=True)
    assert result.last_loss < 0.8 * result.first_loss
    said = capsys.readouterr().err
    assert "in bfloat16" in said
    assert (f"precision: {fp16_type}" in said) == (fp16_type != "bfloat16")


@pytest.mark.slow
def test_evaluation_weighs_every_token_alike(folder):
    config = config_of(folder, loop={"max_steps": 1, "eval_frequency": 1})
    result = train(config)
    # Two batches of 4 of the ten rows; drop_last leaves the others out.
    model = load_model(result.checkpoint_path)
    with h5py.File(folder / "held_out" / "a.h5") as file:
        ids, mask, labels = (torch.from_numpy(file["data"][:8, i]) for i in range(3))
    with torch.no_grad():
        logits = model.logits(ids)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten().long(), reduction="none")
    expected = (losses * mask.flatten()).sum() / mask.sum()
    assert result.eval_loss == pytest.approx(float(expected), abs=tolerances.SAME_IN_FLOAT32)
    right = ((logits.argmax(-1) == labels) * mask).sum() / mask.sum()
    assert result.evaluations[0].accuracy == pytest.approx(float(right))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loop", "checkpoint", "saved", "steps"),
    [
        ({"num_steps": 4}, {"steps": 3}, ["3", "4"], 4),
        ({"num_epochs": 1}, {"steps": 100}, ["16"], 16),
        ({"num_epochs": 2, "steps_per_epoch": 3}, {"steps": 0}, [], 6),
        ({"max_steps": 3, "num_steps": 9}, {"steps": 2, "save_initial_checkpoint": True}, ["0", "2", "3"], 3),
        ({"max_steps": 2}, {}, [], 2),
    ],
)
def test_a_run_is_as_long_and_saves_as_often_as_the_yaml_says(folder, loop, checkpoint, saved, steps):
    result = train(config_of(folder, loop={"eval_frequency": None, **loop}, checkpoint=checkpoint))
    assert result.steps == steps
    names = {p.name for p in (folder / "run").glob("*.mdl")}
    assert names == {f"checkpoint_{s}.mdl" for s in saved}


@pytest.mark.slow
def test_only_the_last_checkpoints_are_kept_where_the_yaml_says_so(folder):
    config = config_of(folder, checkpoint={"steps": 1}, callbacks=[{"KeepNCheckpoints": {"n": 2}}])
    train(config)
    assert sorted(p.name for p in (folder / "run").glob("*.mdl")) == ["checkpoint_5.mdl", "checkpoint_6.mdl"]


def test_the_latest_checkpoint_is_the_one_of_the_highest_step_then_time(folder):
    config, run = config_of(folder), folder / "run"
    run.mkdir()
    for name in ("checkpoint_9.mdl", "checkpoint_10.mdl", "checkpoint_10_20250101_000000.mdl", "model_99.mdl"):
        (run / name).touch()
    assert saved_steps(config, run)[-1].path.name == "checkpoint_10_20250101_000000.mdl"


@pytest.mark.slow
def test_weights_alone_begin_a_new_run(folder):
    first = train(config_of(folder))
    section = trainer_section(folder, callbacks=[{"LoadCheckpointStates": {"load_checkpoint_states": "model"}}])
    section["fit"]["ckpt_path"] = str(first.checkpoint_path)
    again = train(parse_trainer(section), model_dir=folder / "again")
    assert (again.start_step, again.steps) == (0, 6)
    assert again.first_loss < first.first_loss


@pytest.mark.slow
def test_a_checkpoint_of_weights_alone_begins_a_new_run(folder):
    config = config_of(folder)
    torch.manual_seed(5)
    model = LanguageModel(config.init.model)
    save_checkpoint(folder / "w.mdl", {"model": {k: v.numpy() for k, v in model.state_dict().items()}})
    result = train(config, checkpoint=folder / "w.mdl")
    assert (result.start_step, result.steps) == (0, 6)


@pytest.mark.slow
def test_a_list_of_phases_started_again_goes_on_where_it_stopped(folder):
    def phase(end):
        section = trainer_section(folder, loop={"max_steps": end, "eval_frequency": None})
        return {"trainer": section}

    path = folder / "phases.yaml"
    path.write_text(yaml.safe_dump({"trainer": [phase(3), phase(6)]}))

    def fit(*arguments):
        result = CliRunner().invoke(fit_command, [str(path), *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    whole = fit("--model-dir", str(folder / "whole"))
    stopped = fit("--max-steps", "4", "--model-dir", str(folder / "again"))
    assert "steps 4  loss" in stopped
    again = fit("--model-dir", str(folder / "again"))
    assert "phase 1 of 2: finished at step 3" in again
    last_loss = [line.split()[5] for line in (again + whole).splitlines() if line.startswith("steps 6  loss")]
    assert len(last_loss) == 2
    assert last_loss[0] == last_loss[1]
    finished = fit("--model-dir", str(folder / "again"))
    assert finished.count("finished at step") == 2
    assert finished.count("nothing is left to train") == 1


def list_of_phases(folder, *phases):
    """Write and run a list of phases; the section of each is changed by its function."""
    sections = [trainer_section(folder, LLAMA | {"name": "jais_adapted"}) for _ in phases]
    for section, change in zip(sections, phases, strict=True):
        change(section)
    path = folder / "phases.yaml"
    path.write_text(yaml.safe_dump({"trainer": [{"trainer": section} for section in sections]}))
    result = CliRunner().invoke(fit_command, [str(path), "--model-dir", str(folder / "run")])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_frozen_tensors_keep_their_bits_and_have_no_optimizer_state(folder):
    def stage_1(section):
        section["init"]["model"]["frozen_parameters"] = [r"transformer_decoder\.", r"ln_f\."]
        section["init"]["loop"] = {"max_steps": 3, "eval_frequency": None}
        section["init"]["checkpoint"]["save_initial_checkpoint"] = True
        section["init"]["model_dir"] = "stages/1"

    def stage_2(section):
        section["init"]["loop"] = {"max_steps": 4, "eval_frequency": None}
        section["init"]["callbacks"] = [{"LoadCheckpointStates": {"load_checkpoint_states": "model"}}]
        section["init"]["model_dir"] = "stages/2"

    def weights(path):
        return {name: t.detach().numpy().tobytes() for name, t in load_model(path).named_parameters()}

    list_of_phases(folder, stage_1, stage_2)
    initial, first = (folder / "run" / "1" / f"checkpoint_{step}.mdl" for step in (0, 3))
    trained = {"model.embedding_layer.word_embeddings.weight", "model.lm_head.weight"}
    before, after = weights(initial), weights(first)
    assert {name for name in before if before[name] != after[name]} == trained
    with open_checkpoint(first) as checkpoint:
        assert len(checkpoint.tree["optimizer"]["state"]) == len(trained)
    second = folder / "run" / "2" / "checkpoint_4.mdl"
    assert all(value != after[name] for name, value in weights(second).items())
    with open_checkpoint(second) as checkpoint:
        assert len(checkpoint.tree["optimizer"]["state"]) == len(after)


@pytest.mark.slow
def test_a_phase_begins_its_schedule_and_its_data_anew_and_goes_on_with_the_optimizer(folder):
    def ending(step):
        return lambda section: section["init"].update(loop={"max_steps": step, "eval_frequency": None})

    output = list_of_phases(folder, ending(4), ending(6))
    assert "phase 2 of 2: steps 5 to 6, from" in output
    assert "loading global_step, model, optimizer" in output
    with (folder / "run" / "losses.csv").open(newline="") as file:
        rates = {int(row["step"]): float(row["learning_rate"]) for row in csv.DictReader(file)}
    assert (rates[5], rates[6]) == (rates[1], rates[2])
    with open_checkpoint(folder / "run" / "checkpoint_6.mdl") as checkpoint:
        assert checkpoint.tree["global_step"] == 6
        assert checkpoint.tree["dataloader"]["samples_streamed"] == 2 * 4
        assert int(checkpoint.tree["schedulers"][0]["last_epoch"].read()) == 2
        first = next(iter(checkpoint.tree["optimizer"]["state"].values()))
        power = float(first["beta1_power"].read())
        assert power == pytest.approx(0.9**7, rel=1e-6)  # Adam has made six steps


@pytest.mark.slow
def test_rows_of_padding_are_neither_samples_nor_tokens(folder):
    section = trainer_section(folder, loop={"num_epochs": 1, "eval_frequency": None})
    section["fit"]["train_dataloader"].update(batch_size=40, drop_last=False, pad_last=True)  # 64 are 40 and 24
    result = train(parse_trainer(section))
    assert (result.steps, result.tokens) == (2, 64 * 32)
    with open_checkpoint(result.checkpoint_path) as checkpoint:
        assert checkpoint.tree["dataloader"]["samples_streamed"] == 64


@pytest.mark.slow
def test_checkpoints_and_events_go_where_the_yaml_says(folder):
    # Nothing but losses.csv and the index is left for the model directory, which must be made for them.
    elsewhere = {"steps": 1, "checkpoint_root": str(folder / "kept")}
    train(config_of(folder, loop={"max_steps": 1, "eval_frequency": None}, checkpoint=elsewhere))
    assert sorted(p.name for p in (folder / "run").iterdir()) == ["checkpoints_index.yaml", "losses.csv"]
    assert (folder / "kept" / "checkpoint_1.mdl").exists()
    loggers = [{"TensorBoardLogger": {"summary_dir": str(folder / "board")}}]
    train(config_of(folder, loop={"max_steps": 1, "eval_frequency": None}, loggers=loggers), model_dir=folder / "b")
    assert list((folder / "board").glob("events.out.tfevents.*"))
    assert not (folder / "b" / "events").exists()


@pytest.mark.slow
def test_a_list_of_phases_ends_at_max_steps_whatever_their_lengths_are(folder):
    def phase(**length):
        return {"trainer": trainer_section(folder, loop={"eval_frequency": None, **length})}

    path = folder / "phases.yaml"
    path.write_text(yaml.safe_dump({"trainer": [phase(num_steps=2), phase(max_steps=6)]}))
    result = CliRunner().invoke(fit_command, [str(path), "--max-steps", "4"])
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.output.splitlines() if line.startswith("steps ")] == ["2", "4"]
    assert {p.name for p in (folder / "run").glob("*.mdl")} == {"checkpoint_2.mdl", "checkpoint_4.mdl"}
    # --checkpoint is for the first phase that has work left; the next goes on from what that one wrote.
    begin = ["--checkpoint", str(folder / "run" / "checkpoint_2.mdl"), "--model-dir", str(folder / "other")]
    result = CliRunner().invoke(fit_command, [str(path), *begin])
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.output.splitlines() if line.startswith("steps ")] == ["4", "6"]
    assert {p.name for p in (folder / "other").glob("*.mdl")} == {"checkpoint_4.mdl", "checkpoint_6.mdl"}


@pytest.mark.slow
def test_the_command_trains_and_prints_what_came_of_it(folder, monkeypatch):
    path = write_yaml(folder / "a.yaml", trainer_section(folder))
    result = CliRunner().invoke(fit_command, [str(path), "--model-dir", str(folder / "out"), "--max-steps", "3"])
    assert result.exit_code == 0, result.output
    assert "steps 3  loss" in result.output
    assert (folder / "out" / "checkpoint_3.mdl").exists()
    section = trainer_section(folder, backend={"backend_type": "CSX"})
    result = CliRunner().invoke(fit_command, [str(write_yaml(path, section))])
    assert isinstance(result.exception, UserError)
    assert "--backend cpu" in str(result.exception)
