"""Contract: under transformers' own Trainer a step is that of the whole batch, and nothing that we do makes it warn."""

import logging
import warnings

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, DataCollatorWithFlattening, Trainer, TrainingArguments

from checkpoint_convert.hf_code.modeling_jais import JAISForSequenceClassification
from tests import tolerances
from tests.checkpoint_convert.hf_code.examples import random_ids, tiny_model, write_release_code
from tests.checkpoint_convert.hf_code.test_modeling_jais import assert_same
from tests.marks import slow_except

pytestmark = pytest.mark.slow

BATCHES = pytest.mark.parametrize(
    ("size", "accumulated"),
    [
        pytest.param(8, 1, id="8x1", marks=pytest.mark.slow),
        pytest.param(2, 4, id="2x4"),  # batches of unlike sizes, and accumulated
        pytest.param(1, 8, id="1x8", marks=pytest.mark.slow),
    ],
)
NEW_NAME = "activation_checkpointing"
CHECKPOINTING = NEW_NAME if NEW_NAME in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
LABELS = {
    "classes": (3, torch.tensor([2, 0, 1, 1, 0, 2, 2])),
    "numbers": (1, torch.tensor([0.5, -1.0, 2.0, 0.0, 0.25, -0.5, 1.5])),
    "several_labels": (3, (torch.arange(21).view(7, 3) % 5 < 2).float()),
}


def make_trainer(model, rows: list[dict], directory, size: int = 8, accumulated: int = 1, **options) -> Trainer:
    """One step of plain gradient descent at a rate of 1, so that the change of a weight is its gradient."""
    collator = options.pop("data_collator", None)
    settings = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulated,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(str(directory), **{**settings, **options})
    return Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)


def loss_and_gradients(trainer: Trainer) -> tuple[float, dict[str, torch.Tensor]]:
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    loss = trainer.train().training_loss
    return loss, {name: before[name] - p.detach() for name, p in trainer.model.named_parameters()}


def assert_step_is(trainer: Trainer, loss: torch.Tensor, model) -> None:
    """`loss` was computed with `model`, which has the weights that the trainer begins with."""
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    trained, gradients = loss_and_gradients(trainer)
    assert trained == pytest.approx(loss.item(), abs=tolerances.HF_LOSS)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=tolerances.HF_GRADIENT, rtol=0, msg=name)


@pytest.mark.slow
@BATCHES
@pytest.mark.parametrize("kind", LABELS)
def test_a_classifier_takes_the_step_of_the_whole_batch(tmp_path, kind, size, accumulated):
    """Seven rows: the last of several batches is smaller, so that a mean of means is another number."""
    num_labels, labels = LABELS[kind]
    ids = random_ids(7, 6)
    expected = tiny_model(model_class=JAISForSequenceClassification, num_labels=num_labels)
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    model = tiny_model(model_class=JAISForSequenceClassification, num_labels=num_labels)
    trainer = make_trainer(model, rows, tmp_path, size, accumulated)
    assert_step_is(trainer, expected(ids, labels=labels).loss, expected)


@BATCHES
def test_a_language_model_takes_the_step_of_the_whole_batch(tmp_path, size, accumulated):
    """Rows with different numbers of labels, so that a mean of means is another number."""
    ids = random_ids(7, 9)
    labels = ids.clone()
    for i, row in enumerate(labels):
        row[: i + 1] = -100
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    trainer = make_trainer(tiny_model(), rows, tmp_path, size, accumulated)
    expected = tiny_model()
    assert_step_is(trainer, expected(ids, labels=labels).loss, expected)


@BATCHES
def test_packed_texts_take_the_step_of_the_whole_batch(tmp_path, size, accumulated):
    texts = [random_ids(1, 4 + i, seed=i) for i in range(7)]
    rows = [{"input_ids": text[0].tolist()} for text in texts]
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    trainer = make_trainer(tiny_model(), rows, tmp_path, size, accumulated, data_collator=collator)
    expected = tiny_model()
    losses = [expected(text, labels=text).loss * (text.shape[1] - 1) for text in texts]
    assert_step_is(trainer, torch.stack(losses).sum() / sum(text.shape[1] - 1 for text in texts), expected)


def test_the_first_label_of_a_row_is_not_counted(tmp_path):
    ids = random_ids(7, 5)
    trainer = make_trainer(tiny_model(), [{"input_ids": row, "labels": row} for row in ids], tmp_path)
    if not hasattr(trainer, "_loss_shifts_labels"):
        pytest.skip("this Trainer counts the first label of every model")
    expected = tiny_model()
    assert_step_is(trainer, expected(ids, labels=ids).loss, expected)


@pytest.mark.parametrize("kind", LABELS)
def test_evaluation_gives_the_mean_loss_and_the_scores_alone(tmp_path, kind):
    """The cache in the outputs is no prediction."""
    num_labels, labels = LABELS[kind]
    ids = random_ids(7, 6)
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    model = tiny_model(model_class=JAISForSequenceClassification, num_labels=num_labels)
    trainer = make_trainer(model, rows, tmp_path, per_device_eval_batch_size=7)
    model.config.use_cache = True  # some versions of TrainingArguments turn it off
    result = trainer.predict(rows)
    output = model(ids, labels=labels)
    assert_same(torch.tensor(result.predictions), output.logits)
    assert result.metrics["test_loss"] == pytest.approx(output.loss.item(), abs=tolerances.HF_LOSS)


def test_the_fused_head_of_trl_has_the_loss_of_the_model():
    """It computes the logits by itself, and must know their factor."""
    add_fused_lm_head = getattr(pytest.importorskip("trl.trainer.utils"), "add_fused_lm_head", None)
    if add_fused_lm_head is None:
        pytest.skip("this TRL has no fused head")
    model = tiny_model()
    assert model.config.logit_scale != 1
    ids = random_ids(2, 9)
    expected = model(ids, labels=ids).loss.item()
    add_fused_lm_head(model)
    assert model(input_ids=ids, labels=ids, fused_lm_head=True).loss.item() == pytest.approx(
        expected, abs=tolerances.HF_LOSS
    )


class Collected(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record):
        self.messages.append(record.getMessage())


@pytest.fixture
def transformers_messages():
    """What transformers logs at the level that users see, every message, however often it was logged before."""
    handler, verbosity = Collected(), transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    logging.Logger.warning_once.cache_clear()
    logging.getLogger("transformers").addHandler(handler)
    yield handler.messages
    logging.getLogger("transformers").removeHandler(handler)
    transformers.logging.set_verbosity(verbosity)


@pytest.mark.slow
@pytest.mark.parametrize("attention", slow_except(["sdpa"], ["eager", "sdpa"]))
def test_loading_generating_and_training_give_no_warning(tmp_path, transformers_messages, attention):
    tiny_model().save_pretrained(tmp_path)
    write_release_code(tmp_path)
    ids = random_ids(2, 7)
    rows = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in ids]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "pad_token_id": 0, "do_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*torch.cpu.amp.autocast")  # torch 2.4 warns of its own checkpointing
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path, trust_remote_code=True, attn_implementation=attention
        ).eval()
        output = model(ids, labels=ids, output_hidden_states=True)
        model(ids, output_attentions=True)
        output.loss.backward()
        for more in ({}, {"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False}):
            model.generate(ids, **options, **more)
        for checkpointing in (False, True):
            make_trainer(model, rows, tmp_path / "run", **{CHECKPOINTING: checkpointing}).train()
            model.generate(ids, **options)
    assert transformers_messages == []
