"""Arabic sentiment: a release of either family as a classifier of texts, with transformers alone.

The decoder of the release gets a new linear layer on the last token of a text, and all of it is trained on reviews
with a label. The 80 reviews in runs/texts were written for this project; they show the way, and a model for use
needs thousands.

    python runs/sentiment.py RELEASE --output DIR [--reviews FILE.jsonl] [--steps N]

Needs the extra `tune`. Reviews are JSON lines, {"text": "الطعام لذيذ", "label": "positive"}, with any labels.
"""

from tuning import TEXTS, finish, has_own_code, open_tokenizer, parse, print_table, read_lines, settings_of, split


def main() -> None:
    options = parse(__doc__, steps=60, reviews="a file of JSON lines with `text` and `label`")
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        pipeline,
    )

    # ---- 1. Reviews as tokens and classes ---------------------------------------------------------------------------

    reviews = read_lines(options.reviews or TEXTS / "reviews.jsonl")
    labels = sorted({review["label"] for review in reviews})
    tokenizer = open_tokenizer(options.release)
    rows = [
        {"input_ids": tokenizer(review["text"])["input_ids"], "labels": labels.index(review["label"])}
        for review in reviews
    ]
    training, held_out = split(rows, every=5)
    print(f"{len(training)} reviews to learn from, {len(held_out)} held out; labels: {', '.join(labels)}")

    # ---- 2. The release with a classifier in place of its head ------------------------------------------------------

    # transformers reports the new layer as newly initialized, which is what is wanted here.
    model = AutoModelForSequenceClassification.from_pretrained(
        options.release,
        trust_remote_code=has_own_code(options.release),
        dtype=torch.float32,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        pad_token_id=tokenizer.pad_token_id,  # by which the model finds the last token of each row
    )

    # ---- 3. Training ------------------------------------------------------------------------------------------------

    def accuracy(prediction) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    settings = TrainingArguments(
        **settings_of(
            options,
            "trainer",
            per_device_train_batch_size=16,
            learning_rate=1e-3,
            warmup_steps=10,
            weight_decay=0.1,
        )
    )
    trainer = Trainer(
        model,
        settings,
        train_dataset=training,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    parts = {"learnt from": training, "held out": held_out}
    before = {name: trainer.evaluate(part)["eval_accuracy"] for name, part in parts.items()}
    trainer.train()
    print_table(
        "accuracy", {name: (before[name], trainer.evaluate(part)["eval_accuracy"]) for name, part in parts.items()}
    )

    # ---- 4. Saved, loaded and used as any classifier on the hub -----------------------------------------------------

    trainer.save_model(str(options.output / "classifier"))
    tokenizer.save_pretrained(options.output / "classifier")
    model = AutoModelForSequenceClassification.from_pretrained(
        options.output / "classifier", trust_remote_code=has_own_code(options.release)
    )
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    for text in ("المكان نظيف والطعام لذيذ.", "الغرفة متسخة والخدمة سيئة."):
        print(f"{text}  {classify(text)[0]['label']}")
    finish(options)


if __name__ == "__main__":
    main()
