"""A tiny release of each family, in the form that lm_eval's own `hf` backend loads too."""

import torch

from checkpoint_convert.convert import convert_to_hf
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.chat_tokenizers import VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint

SECTIONS = {"jais": jais_section, "llama": llama_section}


def write_release(family, folder, *, chat=False, context=128, seed=0):
    """A release with random weights and a tokenizer of its family."""
    section = SECTIONS[family](vocab_size=VOCABULARY, max_position_embeddings=context)
    folder.mkdir(parents=True, exist_ok=True)
    model = random_model(section, seed)
    with torch.no_grad():  # far from a certain answer, as random weights of this size are not
        model.model.lm_head.weight.mul_(0.2)
    write_checkpoint(folder / "c.mdl", section, state_of(model))
    tokenizer = write_tokenizer(family, folder / "tokenizer")
    convert_to_hf(folder / "c.mdl", folder / "release", tokenizer=tokenizer, chat=chat)
    return folder / "release"
