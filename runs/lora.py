"""LoRA on a release of either family with PEFT and TRL, and the way back to a Cerebras checkpoint.

Adapters are trained on conversations and merged into the weights. The merged release becomes a checkpoint again, on
which the reference path (or a CS system) trains on.

    python runs/lora.py RELEASE --output DIR [--conversations FILE.jsonl] [--steps N]

Needs the extra `tune`. Conversations are JSON lines, {"messages": [{"role": "user", "content": ...}, ...]}; without
--conversations those that come with the package are used.
"""

from tuning import (
    check_room,
    command,
    examples_of,
    finish,
    has_own_code,
    open_tokenizer,
    parse,
    print_table,
    read_lines,
    settings_of,
    split,
)


def main() -> None:
    options = parse(__doc__, steps=40, conversations="a file of JSON lines with `messages`")
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from cerebras_jais.data.chat.reading import sample_conversations_path

    # ---- 1. The release and the conversations -----------------------------------------------------------------------

    path = (options.conversations or sample_conversations_path()).resolve()
    conversations = read_lines(path)
    training, held_out = ([e for c in part for e in examples_of(c)] for part in split(conversations, every=10))
    print(f"{len(training)} responses to learn from, {len(held_out)} held out ({path.name})")
    tokenizer = open_tokenizer(options.release)
    own_code = has_own_code(options.release)
    model = AutoModelForCausalLM.from_pretrained(options.release, trust_remote_code=own_code, dtype=torch.float32)
    length = model.config.max_position_embeddings
    check_room(options.release, tokenizer, length, [*training, *held_out])

    # ---- 2. Low-rank adapters beside every linear layer, trained without padding ------------------------------------

    # "all-linear" finds the layers of both families and leaves the embeddings and the output head as they are. Those of
    # Jais are GPT-2's Conv1D, whose matrices are [in, out]; Llama's are [out, in].
    adapters = LoraConfig(
        task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear", fan_in_fan_out=own_code
    )
    # padding_free puts the examples of a batch one after the other into one row. Their position_ids begin anew, and by
    # these both families keep the examples apart.
    settings = SFTConfig(
        **settings_of(
            options,
            "adapters",
            per_device_train_batch_size=8,
            learning_rate=2e-3,  # far above that of full training: only the small matrices move
            warmup_steps=5,
            padding_free=True,
            max_length=None,  # examples in a padding-free row are not cut
            completion_only_loss=True,  # prompts are read, responses are learnt
        )
    )
    trainer = SFTTrainer(
        model,
        settings,
        train_dataset=Dataset.from_list(training),
        eval_dataset=Dataset.from_list(held_out),
        processing_class=tokenizer,
        peft_config=adapters,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    print_table("loss of responses", {"held out": (before, trainer.evaluate()["eval_loss"])})
    trainer.save_model()  # the adapters alone: megabytes for a model of billions

    # ---- 3. The adapters merged into the weights: a release like any other ------------------------------------------

    merged = options.output / "release"
    trainer.model.merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)

    # ---- 4. Back to Cerebras, compared layer by layer, and trained on -----------------------------------------------

    folder = options.output
    command("checkpoint-convert", "to-cerebras", "release", "--output", "tuned.mdl", folder=folder)
    command("checkpoint-convert", "verify", "tuned.mdl", "release", "--logits", folder=folder)
    text = ("--text", path, "--tokenizer", "release", "--max-sequence-length", length)
    command("cerebras-jais", "data", "chat", *text, "--output", "data/chat", folder=folder)
    command("cerebras-jais", "fit", "tuned.yaml", "--max-steps", 3, folder=folder)
    finish(options)


if __name__ == "__main__":
    main()
