"""The gate runs a release in llama.cpp.

Contract: llama.cpp's log-probabilities from a GGUF file of the release are those of transformers, and the check fails
where they are another model's, even one that differs by the muP factor of the output alone; what llama.cpp cannot
compute, and a machine without it, skip the check with the reason.
"""

import sys

import pytest

import checkpoint_convert.llamacpp.convert
from checkpoint_convert.llamacpp.convert import convert_to_gguf
from tests.checkpoint_convert.gate.test_damaged import checked, failures, release_of

pytest.importorskip("transformers")


def answer(found):
    (check,) = (check for check in found["checks"] if check["name"] == "gguf")
    return check["status"], " ".join(check["texts"])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["jais", "llama"])
def test_another_model_in_llama_cpp_fails_and_names_the_difference(tmp_path, monkeypatch, family):
    pytest.importorskip("xllamacpp")
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    release = release_of(tmp_path / "one", family, False)
    assert answer(checked(release))[0] == "ok"
    changed = {"output_logits_alpha": 3.0} if family == "jais" else {"rope_theta": 500.0}
    other = release_of(tmp_path / "other", family, False, **changed)
    monkeypatch.setattr(
        checkpoint_convert.llamacpp.convert,
        "convert_to_gguf",
        lambda _, *words, **options: convert_to_gguf(other, *words, **options),
    )
    found = checked(release)
    assert failures(found).keys() == {"gguf"}
    assert "computes another model" in failures(found)["gguf"]


def test_what_llama_cpp_cannot_compute_is_no_fault_of_the_release(tmp_path):
    pytest.importorskip("xllamacpp")
    found = checked(release_of(tmp_path, "jais", False, scale_qk_dot_by_d=False))
    assert failures(found) == {}
    status, text = answer(found)
    assert status == "skipped" and "scale_qk_dot_by_d" in text


@pytest.mark.parametrize("package", ["gguf", "xllamacpp"])
def test_without_llama_cpp_the_check_is_skipped_and_names_what_to_install(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    found = checked(release_of(tmp_path, "jais", False))
    assert failures(found) == {}
    assert answer(found)[0] == "skipped" and f"{package} is not installed" in answer(found)[1]
