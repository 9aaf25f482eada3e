"""The prompts of the chat models: one Jinja template, used to make training data and carried by releases.

Source: the prompts of the model card, published; the form of several turns and of a system message is derived from the
card's "Complete the conversation between [|Human|] and [|AI|]".
"""

from functools import cache
from importlib.resources import files


@cache
def chat_template() -> str:
    """The template as releases carry it in chat_template.jinja.

    It takes `messages`, `add_generation_prompt`, `eos_token`, and `language` ("ar" or "en"); without a language the
    last message of the user decides. Its `generation` blocks are the responses, on which alone a model is trained.
    """
    return (files(__package__) / "chat_template.jinja").read_text(encoding="utf-8")
