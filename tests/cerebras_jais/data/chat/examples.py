"""Tokenizers, conversations and strategies for the tests of conversations; not a test itself."""

import json

from hypothesis import strategies as st

from cerebras_jais.data.chat.prompts import Message
from cerebras_jais.data.chat.reading import Conversation
from cerebras_jais.data.documents import read_documents, sample_corpus_path
from cerebras_jais.data.tokenizer import save_tokenizer, train_tokenizer


def places(rendered):
    """Where the responses of a rendered conversation are: characters from start to before end."""
    found, end = [], 0
    for before, message, response in zip(*rendered, strict=True):
        start, end = end + len(before), end + len(before) + len(message)
        found += [(start, end)] * response
    return found


_END = "<|endoftext|>"
EOS = {"byte-level": _END, "trimming": _END, "normalising": _END, "prefixing": _END, "llama": "</s>"}


def byte_level(folder, entries=600):
    """The folder of a tokenizer of the kind of jais-family, trained on the sample."""
    return save_tokenizer(train_tokenizer(read_documents(sample_corpus_path()), entries), folder, 512)


def with_gap(folder, last=5000):
    """The folder of the first, whose letter "a" has the id `last`: its ids have a gap before it."""
    file = byte_level(folder) / "tokenizer.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    stored["model"]["vocab"]["a"] = last
    file.write_text(json.dumps(stored), encoding="utf-8")
    return folder


def llama(folder):
    """The folder of a tokenizer of Llama-2's kind: merges across words, byte fallback, a space put first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*names, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    words = [word for document in read_documents(sample_corpus_path()) for word in document.text.split()]
    tokenizer.train_from_iterator([" ".join(words[i : i + 3]) for i in range(0, len(words), 3)], trainer)
    stored = json.loads(tokenizer.to_str())
    stored["added_tokens"] = []  # the byte tokens are no special tokens in Llama's file
    tokenizer = Tokenizer.from_str(json.dumps(stored))
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"})
    )
    return folder


def trimming(folder, normalizer=None):
    """The first, with a post-processor that leaves spaces out of the places of tokens, as GPT-2's file has it."""
    from tokenizers import processors

    tokenizer = train_tokenizer(read_documents(sample_corpus_path()), 600)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return save_tokenizer(tokenizer, folder, 512)


def normalising(folder):
    """The same with a normaliser, so that it is given whole texts, as GPT-NeoX's file has it."""
    from tokenizers import normalizers

    return trimming(folder, normalizers.NFC())


def prefixing(folder):
    """The first, which puts a space before each text that has none."""
    from tokenizers import pre_tokenizers

    tokenizer = train_tokenizer(read_documents(sample_corpus_path()), 600)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return save_tokenizer(tokenizer, folder, 512)


TOKENIZERS = {
    "byte-level": byte_level,
    "trimming": trimming,
    "normalising": normalising,
    "prefixing": prefixing,
    "llama": llama,
}


def conversation(*turns, system=None, language="en", place="file:1"):
    """A conversation of texts that alternate user, assistant."""
    messages = [Message("system", system)] if system is not None else []
    messages += [Message("assistant" if number % 2 else "user", text) for number, text in enumerate(turns)]
    return Conversation(tuple(messages), language, place, place)


# Letters of both scripts with marks, emoji of several code points, white space of all kinds, what prompts are made of.
_CHARACTERS = st.one_of(
    st.sampled_from("abz ABZ 019 \n\t.,:;|[]#<>/{}%-'\"  "),
    st.sampled_from("ابتثجحخ ةىءأإ َُِّْـ ٠١٢ ،؛؟«»\u200c\u200d\u200f\u2028\u00a0"),
    st.characters(exclude_categories=["Cs"]),
)
_PARTS = st.one_of(
    st.text(_CHARACTERS, min_size=1, max_size=12),
    st.sampled_from(
        [
            "[|Human|]",
            "[|AI|]",
            "### Response :",
            "###Input:",
            "### instruction:",
            "[| AI |]",
            "👩‍👩‍👧",
            "مرحبا",
            "{{ x }}",
            "{% if %}",
        ]
    ),
)
texts = st.lists(_PARTS, min_size=1, max_size=4).map("".join).filter(lambda text: text.strip())
conversations = st.builds(
    lambda pairs, system, language: conversation(
        *(text for pair in pairs for text in pair), system=system, language=language
    ),
    st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
    st.one_of(st.none(), texts),
    st.sampled_from(["ar", "en"]),
)
