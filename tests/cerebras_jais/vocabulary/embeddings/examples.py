"""Small tokenizers and models to transfer between."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from cerebras_jais.data.documents import read_documents, sample_corpus_path
from cerebras_jais.data.tokenizer import save_tokenizer, train_tokenizer
from cerebras_jais.vocabulary.embeddings.transfer import TransferOptions, transfer
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint


def sample(*languages):
    """The bundled documents of some languages."""
    return [document for document in read_documents(sample_corpus_path()) if document.language in languages]


def write_donor_tokenizer(folder, vocab_size=700):
    """A byte-level tokenizer, trained on Arabic and English."""
    return save_tokenizer(train_tokenizer(sample("ar", "en"), vocab_size), folder, 128)


def write_base_tokenizer(folder, vocab_size=600):
    """A tokenizer in the way of Llama-2, trained on English: SentencePiece's spaces, bytes for unknown letters."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>", "<s>", "</s>", *pieces], show_progress=False
    )
    words = [word for document in sample("en") for word in document.text.split()]
    tokenizer.train_from_iterator(words, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # Llama-2's byte tokens are ordinary pieces
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    declared = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **declared}), encoding="utf-8"
    )
    return folder


def write_extended(folder, base, texts):
    """The tokenizer of a base with pieces for some texts behind its own, without merges to reach them."""
    folder.mkdir()
    content = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    for text in texts:
        vocabulary.setdefault(text.replace(" ", "▁"), len(vocabulary))
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_bytes((base / "tokenizer_config.json").read_bytes())
    return folder


def run_transfer(base, donor, tokenizer, output, **options):
    """Transfer, with any of the options by name; its report."""
    shared = {field.name: options.pop(field.name) for field in fields(TransferOptions) if field.name in options}
    return transfer(TransferOptions(base, donor, output, **shared), tokenizer, **options)[1]


def arabic_tokens(folder):
    """The texts of the tokens of a byte-level tokenizer that are Arabic."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = (decoders.ByteLevel().decode([piece]) for piece, _ in sorted(tokenizer.get_vocab().items()))
    return [text for text in texts if any("ء" <= letter <= "ي" for letter in text) and "�" not in text]


@dataclass(frozen=True)
class Pair:
    """A base and a donor, each `model.mdl` with `tokenizer` beside it, and the extended tokenizer."""

    base: Path
    donor: Path
    extended: Path

    def words(self, output):
        """The options of `vocab transfer`."""
        return ["--base", self.base, "--donor", self.donor, "--tokenizer", self.extended, "--output", output]


def size_of(folder):
    """The entries of a tokenizer."""
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


def write_pair(folder, **changes):
    """A Llama-style base and a Jais-style donor of random weights; `changes` are to the base's section."""
    for name in ("base", "donor"):
        (folder / name).mkdir()
    base = write_base_tokenizer(folder / "base" / "tokenizer")
    donor = write_donor_tokenizer(folder / "donor" / "tokenizer")
    extended = write_extended(folder / "extended", base, [*arabic_tokens(donor), "ـ" * 9])
    sections = {
        "base": llama_section(vocab_size=size_of(base), **changes),
        "donor": jais_section(vocab_size=size_of(donor)),
    }
    for seed, (name, section) in enumerate(sections.items()):
        write_checkpoint(folder / name / "model.mdl", section, state_of(random_model(section, seed)))
    return Pair(folder / "base" / "model.mdl", folder / "donor" / "model.mdl", extended)
