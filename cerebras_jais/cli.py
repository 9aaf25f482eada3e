"""`cerebras-jais VERB`: text to tokens, tokens to a trained model, a model to text."""

from __future__ import annotations

import click

from cerebras_jais import __version__
from cerebras_jais.commandline import LazyGroup, completion_command, run, statuses

VERBS = {
    "models": ("cerebras_jais.commands.config:models", "What the 20 models are, and where each number comes from."),
    "config": ("cerebras_jais.commands.config:config", "Check, list, show, compare and write trainer YAML."),
    "data": ("cerebras_jais.commands.data:data", "Turn text into a tokenizer and packed training data."),
    "vocab": ("cerebras_jais.commands.vocabulary.group:vocab", "Extend a tokenizer and a model for one more language."),
    "tokens": ("cerebras_jais.commands.vocabulary.group:tokens", "Show how tokenizers cut a text, side by side."),
    "fit": ("cerebras_jais.commands.fit:fit", "Train a model from a Model Zoo trainer YAML: CPU, GPU or CS systems."),
    "lower": ("cerebras_jais.commands.lower:lower", "Lower trainer YAML to the programs of CS systems, without one."),
    "run-program": ("cerebras_jais.commands.run_program:run_program", "Run a lowered program's first steps on a CPU."),
    "generate": ("cerebras_jais.commands.chat:generate", "Continue a prompt with a checkpoint or a release."),
    "chat": ("cerebras_jais.commands.chat:chat", "Talk to a chat model in the terminal."),
    "serve": (
        "cerebras_jais.commands.serve:serve",
        "Answer OpenAI's interface with a model, and a page in the browser.",
    ),
    "score": ("cerebras_jais.commands.score:score", "Loss and bits per byte of a checkpoint or a release on text."),
    "evaluate": (
        "cerebras_jais.commands.evaluate:evaluate",
        "Scores on the tasks of lm_eval: the card's columns, Arabic leaderboards, reading.",
    ),
    "report": ("cerebras_jais.commands.report:report", "Results of lm_eval beside the scores that the card publishes."),
    "answers": ("cerebras_jais.commands.judge:answers", "Answer a set of open questions with a chat model."),
    "judge": ("cerebras_jais.commands.judge:judge", "Have a model judge such answers: win rates, or ratings."),
    "zoo": ("cerebras_jais.commands.zoo:zoo", "Run cszoo of the Model Zoo with the models of the family."),
}


@click.group(
    cls=LazyGroup, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="cerebras-jais")
def cli() -> None:
    """Train and run the Jais family of Arabic-English language models.

    \b
    A whole run in miniature, from the bundled sample of text (--text names your own) to an answer:
      cerebras-jais data tokenizer --vocab-size 2048 --output tokenizer
      cerebras-jais data pack --tokenizer tokenizer --max-sequence-length 128 --output data
      cerebras-jais fit tiny/jais
      cerebras-jais generate jais/checkpoint_100.mdl --tokenizer tokenizer --prompt "ما هي عاصمة الإمارات؟"

    Checkpoints are Cerebras checkpoints (.mdl). `checkpoint-convert` makes Hugging Face releases of them.
    """


cli.epilog = statuses()
cli.add_command(completion_command("cerebras-jais"))


def main() -> None:
    """Entry point of the console command."""
    run(cli, "cerebras-jais")


if __name__ == "__main__":
    main()
