"""Bilingual summaries: a release of either family tuned on instructions, Arabic and English in every direction.

Each text exists in both languages with a summary in both, which gives four tasks: summarise Arabic in Arabic, English
in English, and each in the other language. The tasks become conversations with the family's prompt, several to a row,
and only the responses are learnt, as the card describes instruction tuning.

    python runs/summaries.py RELEASE --output DIR [--texts FILE.jsonl] [--steps N]

Needs the extra `tune`. Texts are JSON lines, {"ar": {"text": ..., "summary": ...}, "en": {...}}. The twelve in
runs/texts were written for this project.
"""

from tuning import (
    TEXTS,
    check_room,
    finish,
    has_own_code,
    open_tokenizer,
    parse,
    print_table,
    read_lines,
    settings_of,
    split,
)

# (language of the text, language of the summary) -> the instruction, in the language of the summary.
INSTRUCTIONS = {
    ("ar", "ar"): "لخّص النص التالي في جملة واحدة:",
    ("en", "en"): "Summarise the following text in one sentence:",
    ("en", "ar"): "لخّص النص الإنجليزي التالي بالعربية في جملة واحدة:",
    ("ar", "en"): "Summarise the following Arabic text in English, in one sentence:",
}


def example(text: dict, source: str, target: str) -> dict:
    """A task and its answer. The prompt is in the language of the answer, also where the text is in the other."""
    question = f"{INSTRUCTIONS[source, target]}\n{text[source]['text']}"
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": text[target]["summary"]}],
        "chat_template_kwargs": {"language": target},
    }


def main() -> None:
    options = parse(__doc__, steps=40, texts="a file of JSON lines with texts and summaries")
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    # ---- 1. The release and the tasks -------------------------------------------------------------------------------

    training, held_out = split(read_lines(options.texts or TEXTS / "summaries.jsonl"), every=6)
    tasks = [example(text, *languages) for languages in INSTRUCTIONS for text in training]
    unseen = {
        f"{source} to {target}": [example(text, source, target) for text in held_out] for source, target in INSTRUCTIONS
    }
    print(f"{len(tasks)} tasks on {len(training)} texts to learn from, {len(held_out)} texts held out")
    tokenizer = open_tokenizer(options.release)
    model = AutoModelForCausalLM.from_pretrained(
        options.release, trust_remote_code=has_own_code(options.release), dtype=torch.float32
    )
    positions = model.config.max_position_embeddings
    check_room(options.release, tokenizer, positions, [*tasks, *(task for part in unseen.values() for task in part)])

    # ---- 2. Instruction tuning: whole examples packed into rows, loss on responses alone ----------------------------

    settings = SFTConfig(
        **settings_of(
            options,
            "trainer",
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            warmup_steps=8,
            weight_decay=0.1,
            packing=True,
            packing_strategy="bfd",  # best fit; no example is split
            max_length=positions,
            completion_only_loss=True,
            eval_packing=False,
        )
    )
    trainer = SFTTrainer(
        model,
        settings,
        train_dataset=Dataset.from_list(tasks),
        eval_dataset={name: Dataset.from_list(part) for name, part in unseen.items()},
        processing_class=tokenizer,
    )

    def losses() -> dict[str, float]:
        found = trainer.evaluate()
        return {name: found[f"eval_{name}_loss"] for name in unseen}

    before = losses()
    trainer.train()
    after = losses()
    print_table("loss of unseen summaries", {name: (before[name], after[name]) for name in unseen})

    # ---- 3. The tuned release, and what it writes -------------------------------------------------------------------

    model.save_pretrained(options.output / "release")
    tokenizer.save_pretrained(options.output / "release")
    for source, target in INSTRUCTIONS:
        task = example(held_out[0], source, target)
        prompt = tokenizer.apply_chat_template(
            task["prompt"], tokenize=False, add_generation_prompt=True, language=target
        )
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
        answer = model.generate(**inputs, max_new_tokens=40, do_sample=False, temperature=None, top_p=None)
        written = tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"\n{source} to {target}: {' '.join(written.split())}")
    finish(options)


if __name__ == "__main__":
    main()
