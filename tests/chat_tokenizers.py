"""A small tokenizer in the way of each family, trained on the sample corpus; both end a text with EOS."""

import json
from functools import cache

from cerebras_jais.data.documents import read_documents, sample_corpus_path
from cerebras_jais.data.tokenizer import END_OF_TEXT, save_tokenizer, train_tokenizer

EOS = END_OF_TEXT
VOCABULARY = 700
"""Entries that a model needs for either of them."""


@cache
def byte_level():
    """The BPE over bytes of the Jais family; EOS is token 0."""
    return train_tokenizer(read_documents(sample_corpus_path()), 400)


@cache
def sentence_piece():
    """A BPE over characters in the way of Llama-2: ▁ for a space, one put before the text, bytes as a fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 256, special_tokens=["<unk>", "<s>", EOS], show_progress=False, max_token_length=8
    )
    words = (word for document in read_documents(sample_corpus_path()) for word in document.text.split())
    tokenizer.train_from_iterator(words, trainer)
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    return Tokenizer.from_str(json.dumps(state))


TOKENIZERS = {"jais": byte_level, "llama": sentence_piece}


def write_tokenizer(family, directory):
    """The tokenizer of a family as a folder that transformers loads; Llama's puts <s> before a text and cannot pad."""
    tokenizer = TOKENIZERS[family]()
    if family == "jais":
        return save_tokenizer(tokenizer, directory, 2048)
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": EOS,
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 2048,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
