"""Small releases of both families to serve; not a test itself."""

from checkpoint_convert.convert import convert_to_hf
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.chat_tokenizers import VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint

SECTIONS = {"jais": jais_section, "llama": llama_section}


def make_release(folder, family, **options):
    """A release of random weights that takes prompts of a thousand tokens."""
    section = SECTIONS[family](vocab_size=VOCABULARY, max_position_embeddings=1024)
    checkpoint = write_checkpoint(folder / "c.mdl", section, state_of(random_model(section)))
    tokenizer = write_tokenizer(family, folder / "tokenizer")
    convert_to_hf(checkpoint, folder / "release", tokenizer=tokenizer, **options)
    return folder / "release"
