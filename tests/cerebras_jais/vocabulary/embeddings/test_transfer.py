"""A transferred checkpoint is the base with rows for more tokens, and everything else of it bit for bit.

Contract: the rows of the base stay; new rows are those of the closed formula on the shared tokens (numpy, float64), or
of the method asked for; rows of no token are the base's mean; bases and donors of either side give the same; a run
that resumes after a kill gives the same bytes without learning again; the output loads in the reference path, becomes a
plain LlamaForCausalLM and comes back.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tokenizers import Tokenizer, models

import cerebras_jais.vocabulary.embeddings.transfer as transferring
from cerebras_jais.checkpoint import open_checkpoint
from cerebras_jais.cli import cli
from cerebras_jais.model.load import load_model
from cerebras_jais.vocabulary.embeddings.methods import Method
from cerebras_jais.vocabulary.embeddings.shared_tokens import new_tokens, read_vocabulary, shared_tokens, sources_of
from checkpoint_convert.convert import convert_to_cerebras, convert_to_hf
from checkpoint_convert.streaming.journal import Work
from tests import tolerances
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.cerebras_jais.vocabulary.embeddings.examples import run_transfer, size_of, write_pair
from tests.checkpoint_convert.examples import listing, random_model, state_of, write_checkpoint

EMBEDDING, HEAD = "model.embedding_layer.word_embeddings.weight", "model.lm_head.weight"
PADDING = 5


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


def run(pair, output, **options):
    """Transfer between a pair of models; the report."""
    vocab_size = size_of(pair.extended) + PADDING
    return run_transfer(pair.base, pair.donor, pair.extended, output, **{"vocab_size": vocab_size, **options})


@pytest.fixture(scope="module")
def output(pair, tmp_path_factory):
    """The checkpoint that a projection makes."""
    path = tmp_path_factory.mktemp("output") / "extended.mdl"
    run(pair, path)
    return path


def tensors_of(path):
    """The model's tensors in a checkpoint, by name."""
    with open_checkpoint(path, on_object="skip") as opened:
        return {name: tensor.read() for name, tensor in opened.tree["model"].items()}


def tokens_of(pair):
    """The three vocabularies, the new ids and the ids of the shared tokens in both."""
    base, donor = (read_vocabulary(path.parent / "tokenizer") for path in (pair.base, pair.donor))
    extended = read_vocabulary(pair.extended)
    return base, donor, extended, new_tokens(base, extended), *shared_tokens(base, donor)


def test_all_but_the_new_rows_is_the_bases_bit_for_bit(pair, output):
    before, after = tensors_of(pair.base), tensors_of(output)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name][: len(tensor)], tensor, err_msg=name)
        grows = name in (EMBEDDING, HEAD)
        assert len(after[name]) == (size_of(pair.extended) + PADDING if grows else len(tensor))


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_new_rows_are_those_of_the_closed_formula(pair, output, name):
    _, donor, extended, new, base_ids, donor_ids = tokens_of(pair)
    report = json.loads(output.with_name("extended.transfer.json").read_text())
    source, target = tensors_of(pair.donor)[EMBEDDING].astype(np.float64), tensors_of(pair.base)[name]
    x, y = source[donor_ids], target[base_ids].astype(np.float64)
    centred = x - x.mean(0)
    gram = centred.T @ centred
    ridge = gram + report["strength"] * np.trace(gram) / len(gram) * np.eye(len(gram))
    weight = np.linalg.solve(ridge, centred.T @ (y - y.mean(0)))
    rows = np.array([source[list(pieces)].mean(0) for pieces in sources_of(new, extended, donor).values()])
    expected = (rows - x.mean(0)) @ weight + y.mean(0)
    np.testing.assert_allclose(tensors_of(output)[name][new], expected, rtol=0, atol=tolerances.SAME_IN_FLOAT32)


def test_new_rows_of_bfloat16_are_those_of_float32_rounded(pair, tmp_path):
    """From the same values, stored as either; each new row as near as two roundings of its parts leave it."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        for path, section in ((pair.base, llama_section), (pair.donor, jais_section)):
            folder = tmp_path / str(dtype) / path.parent.name
            shutil.copytree(path.parent / "tokenizer", folder / "tokenizer")
            state = state_of(random_model(section(vocab_size=size_of(folder / "tokenizer"))), torch.bfloat16)
            values = {
                name: tensor.astype(np.float32) if dtype is torch.float32 else tensor for name, tensor in state.items()
            }
            write_checkpoint(folder / "model.mdl", section(vocab_size=size_of(folder / "tokenizer")), values)
        models = (tmp_path / str(dtype) / name / "model.mdl" for name in ("base", "donor"))
        report = run_transfer(*models, pair.extended, tmp_path / f"{dtype}.mdl")
        found[dtype] = tensors_of(tmp_path / f"{dtype}.mdl"), report
    rounded, exact = found[torch.bfloat16], found[torch.float32]
    assert rounded[1]["strength"] == exact[1]["strength"]
    for name in (EMBEDDING, HEAD):
        rows = exact[0][name]
        np.testing.assert_allclose(
            rounded[0][name].astype(np.float32), rows, rtol=0, atol=tolerances.SAME_IN_BFLOAT16 * np.abs(rows).max()
        )


def test_rows_of_no_token_are_the_bases_mean(pair, output):
    for name in (EMBEDDING, HEAD):
        before, after = tensors_of(pair.base)[name], tensors_of(output)[name]
        mean = np.tile(before.mean(0), (PADDING, 1))
        np.testing.assert_allclose(after[-PADDING:], mean, rtol=0, atol=tolerances.SAME_IN_FLOAT32)


def test_the_methods_that_one_compares_with(pair, tmp_path):
    base, _, extended, new, *_ = tokens_of(pair)
    before = tensors_of(pair.base)[HEAD]
    pieces = sources_of(new, extended, base)
    for method in (Method.PIECES, Method.MEAN, Method.RANDOM):
        run(pair, tmp_path / f"{method}.mdl", method=method)
    found = {method: tensors_of(tmp_path / f"{method}.mdl")[HEAD][new] for method in ("pieces", "mean", "random")}
    expected = [before[list(ids)].mean(0) for ids in pieces.values()]
    np.testing.assert_allclose(found["pieces"], expected, rtol=0, atol=tolerances.SAME_IN_FLOAT32)
    expected = np.tile(before.mean(0), (len(new), 1))
    np.testing.assert_allclose(found["mean"], expected, rtol=0, atol=tolerances.SAME_IN_FLOAT32)
    assert found["random"].std() == pytest.approx(before.std(), rel=0.05)  # statistical: 8,000 values


def spelled_without(content, piece, text):
    """The ids of a text by the library, from a base's tokenizer.json whose merges and letters make no such piece."""
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    if len(piece) == 1:
        vocabulary, merges = {name: number for name, number in vocabulary.items() if name != piece}, []
    merges = [tuple(merge) for merge in merges if "".join(merge) != piece]
    bare = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    return [token.id for token in bare.model.tokenize(text)]


@pytest.mark.parametrize("seed", [0, 3])
def test_held_out_tokens_are_spelled_without_themselves_for_the_mean_of_pieces(pair, tmp_path, seed):
    """The report's cosine, computed by numpy from what `tokenizers` makes of a base without the token's merges."""
    report = run(pair, tmp_path / "out.mdl", seed=seed)
    base, *_, base_ids, _ = tokens_of(pair)
    held = np.sort(np.random.default_rng(seed).permutation(len(base_ids))[: report["held_out"]])
    content = json.loads((pair.base.parent / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    names = {number: piece for piece, number in content["model"]["vocab"].items()}
    for matrix, name in (("embedding", EMBEDDING), ("head", HEAD)):
        rows, cosines = tensors_of(pair.base)[name].astype(np.float64), []
        for number in base_ids[held].tolist():
            piece = names[number]
            ids = [] if piece.startswith("<0x") else spelled_without(content, piece, piece)
            assert number not in ids
            made = rows[ids].mean(0) if ids else rows[: base.size].mean(0)
            cosines.append(made @ rows[number] / np.linalg.norm(made) / np.linalg.norm(rows[number]))
        (judged,) = (row for row in report["judged"] if (row["matrix"], row["method"]) == (matrix, "pieces"))
        assert judged["cosine"] == pytest.approx(np.mean(cosines), abs=tolerances.SAME_IN_FLOAT32)


def test_norms_are_brought_to_the_bases_by_one_factor(pair, output, tmp_path):
    new = tokens_of(pair)[3]
    report = run(pair, tmp_path / "scaled.mdl", base_norms=True)
    for name, norms in zip((EMBEDDING, HEAD), report["norms"], strict=True):
        plain, scaled = tensors_of(output)[name][new], tensors_of(tmp_path / "scaled.mdl")[name][new]
        base = np.linalg.norm(tensors_of(pair.base)[name], axis=1).mean()
        assert norms["base"] == pytest.approx(base, rel=1e-5)
        assert norms["projected"] == pytest.approx(np.linalg.norm(plain, axis=1).mean(), rel=1e-5)
        np.testing.assert_allclose(scaled, plain * norms["factor"], rtol=0, atol=tolerances.SAME_IN_FLOAT32)
        assert np.linalg.norm(scaled, axis=1).mean() == pytest.approx(base, rel=1e-5)


def test_releases_give_what_checkpoints_give(pair, output, tmp_path):
    for path in (pair.base, pair.donor):
        convert_to_hf(path, tmp_path / path.parent.name, tokenizer=path.parent / "tokenizer")
    run_transfer(
        tmp_path / "base",
        tmp_path / "donor",
        pair.extended,
        tmp_path / "extended.mdl",
        vocab_size=size_of(pair.extended) + PADDING,
    )
    one, other = tensors_of(output), tensors_of(tmp_path / "extended.mdl")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_array_equal(other[name], tensor, err_msg=name)


@pytest.mark.parametrize("after", [1, 8, 20])
def test_a_run_that_resumes_gives_the_same_bytes_and_does_not_learn_again(pair, output, tmp_path, monkeypatch, after):
    record, fit = Work.record, transferring.fit
    path, left, learned = tmp_path / "extended.mdl", [after], []

    def interrupted(work, number, digests):
        record(work, number, digests)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    def counted(*arguments, **options):
        learned.append(1)
        return fit(*arguments, **options)

    monkeypatch.setattr(Work, "record", interrupted)
    monkeypatch.setattr(transferring, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        run(pair, path)
    assert listing(tmp_path) == [".extended.mdl.partial"]
    run(pair, path)
    assert learned == [1]
    names = ["extended.manifest.json", "extended.mdl", "extended.transfer.json", "extended.yaml"]
    assert listing(tmp_path) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (output.parent / name).read_bytes(), name


def test_an_interruption_while_it_learns_leaves_nothing(pair, tmp_path):
    def interrupted(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pair, tmp_path / "extended.mdl", fitting=interrupted)
    assert listing(tmp_path) == []


def test_the_work_told_is_all_of_it(pair, tmp_path):
    told = []
    run(pair, tmp_path / "extended.mdl", fitting=lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {told[0][1]}
    assert sum(done for done, _ in told) == pytest.approx(told[0][1])


@pytest.mark.slow
def test_the_output_loads_becomes_a_plain_llama_and_comes_back(pair, output, tmp_path):
    from transformers import AutoModelForCausalLM

    convert_to_hf(output, tmp_path / "release", tokenizer=pair.extended)
    release = AutoModelForCausalLM.from_pretrained(tmp_path / "release").eval()
    assert type(release).__name__ == "LlamaForCausalLM"
    ids = torch.tensor([[1, 600, 5, size_of(pair.extended) - 1, 700]])
    with torch.no_grad():
        ours, theirs = load_model(output).logits(ids), release(ids).logits
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerances.RELEASE_LOGITS)
    assert load_file(tmp_path / "release" / "model-00001-of-00001.safetensors")["lm_head.weight"].shape == (
        size_of(pair.extended) + PADDING,
        48,
    )
    convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    back = tensors_of(tmp_path / "back.mdl")
    for name, tensor in tensors_of(output).items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tied_base_keeps_its_tie_and_its_element_type(pair, tmp_path, dtype):
    section = llama_section(vocab_size=size_of(pair.base.parent / "tokenizer"), share_embedding_weights=True)
    write_checkpoint(tmp_path / "base.mdl", section, state_of(random_model(section), dtype))
    report = run_transfer(
        tmp_path / "base.mdl",
        pair.donor,
        pair.extended,
        tmp_path / "out.mdl",
        base_tokenizer=pair.base.parent / "tokenizer",
    )
    assert {row["matrix"] for row in report["judged"]} == {"embedding"}
    with open_checkpoint(tmp_path / "out.mdl") as opened:
        tensors = opened.tree["model"]
        assert tensors[HEAD].storage_id == tensors[EMBEDDING].storage_id
        assert tensors[HEAD].dtype == str(dtype).removeprefix("torch.")


def test_the_yaml_of_the_run_to_come_gives_the_model_section(pair, tmp_path):
    rows = size_of(pair.extended) + 3
    section = llama_section(
        name="jais_adapted", vocab_size=rows, frozen_parameters=[r"transformer_decoder\.", r"ln_f\."]
    )
    (tmp_path / "stage-1.yaml").write_text(json.dumps({"trainer": {"init": {"model": section}}}))
    run(pair, tmp_path / "out.mdl", vocab_size=None, config=tmp_path / "stage-1.yaml")
    with open_checkpoint(tmp_path / "out.mdl") as opened:
        assert opened.metadata[-1]["params"]["trainer"]["init"]["model"] == section
        assert opened.tensors[f"model.{EMBEDDING}"].shape == (rows, 48)


def test_the_command_prints_a_row_for_each_method_and_matrix(pair, output, tmp_path):
    words = [str(word) for word in pair.words(tmp_path / "out.mdl")]
    dry = CliRunner().invoke(cli, ["vocab", "transfer", *words, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert listing(tmp_path) == []
    done = CliRunner().invoke(cli, ["vocab", "transfer", *words, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    for row in found["judged"]:
        cells = [f"{row['matrix']}", row["method"], f"{row['cosine']:.3f}", f"{row['norm_ratio']:.3f}"]
        assert any(all(cell in line.split() for cell in cells) for line in dry.output.splitlines()), cells
    assert {(row["matrix"], row["method"]) for row in found["judged"]} == {
        (matrix, method.value) for matrix in ("embedding", "head") for method in Method
    }
    (yaml,) = tmp_path.glob("*.yaml")
    assert "the vocabulary grew" in yaml.read_text()


def test_compressed_checkpoints_give_what_others_give(pair, output, tmp_path):
    for path in (pair.base, pair.donor):
        convert_to_hf(path, tmp_path / path.parent.name)
        convert_to_cerebras(tmp_path / path.parent.name, tmp_path / f"{path.parent.name}.mdl", compression="lz4")
    run_transfer(
        tmp_path / "base.mdl",
        tmp_path / "donor.mdl",
        pair.extended,
        tmp_path / "extended.mdl",
        base_tokenizer=pair.base.parent / "tokenizer",
        donor_tokenizer=pair.donor.parent / "tokenizer",
        vocab_size=size_of(pair.extended) + PADDING,
    )
    found = tensors_of(tmp_path / "extended.mdl")
    for name, tensor in tensors_of(output).items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
