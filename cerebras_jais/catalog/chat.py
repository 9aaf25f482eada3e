"""The prompts of the chat models, one Jinja template for training data and releases; and how these models sample.

Source: the prompts of the model card, published; the form of several turns and of a system message is derived from the
card's "Complete the conversation between [|Human|] and [|AI|]".
"""

from functools import cache
from importlib.resources import files

SAMPLING = {"do_sample": True, "temperature": 0.3, "top_p": 0.9, "repetition_penalty": 1.2}
"""How the chat models sample, under the names of transformers' generation_config.json.

Source: the quick start of the model card, published. Stop strings are not among them: `generate` of transformers would
then demand a tokenizer.
"""


@cache
def chat_template() -> str:
    """The template as releases carry it in chat_template.jinja.

    It takes `messages`, `add_generation_prompt`, `eos_token`, and `language` ("ar" or "en"); without a language the
    letters of the user's last message decide, Arabic and Latin ones counted. Its `generation` blocks are the
    responses, on which alone a model is trained.
    """
    return (files(__package__) / "chat_template.jinja").read_text(encoding="utf-8")
