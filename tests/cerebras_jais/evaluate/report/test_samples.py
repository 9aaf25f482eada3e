"""Questions answered right and wrong.

Contract: what is shown as right, wrong and given agrees with the marks that lm_eval gave, in every form that a target
has; the choice is the same whatever the order of the file; lines that are no samples are refused by file and line.
"""

import json
import random

import pytest

from cerebras_jais.evaluate.report.results import ResultsError, read_run
from cerebras_jais.evaluate.report.samples import pick_samples
from tests.cerebras_jais.evaluate.report.examples import STAMP, Results, choice, written


def picked(tmp_path, lines, metric="acc", number=10, **how):
    results = Results().task("t", metric, 0.5, samples=lines, **how)
    return pick_samples(read_run(results.write(tmp_path)).tasks["t"], metric, number)


def test_options_are_marked_as_given_and_as_right(tmp_path):
    found = picked(tmp_path, [choice(0, True, gold=2), choice(1, False, gold=2)])
    (right,), (wrong,) = found.right, found.wrong
    assert right.prompt == choice(0, True)["arguments"]["gen_args_0"]["arg_0"]
    assert [option.text for option in right.options] == ["an island", "a mountain", "a lake", "the moon"]
    assert [(option.right, option.given) for option in right.options] == [
        (False, False),
        (False, False),
        (True, True),
        (False, False),
    ]
    assert [(option.right, option.given) for option in wrong.options] == [
        (False, False),
        (False, False),
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize("target", ["2", "[2]", "[0, 2]", "a lake", " a lake"])
@pytest.mark.parametrize("right", [True, False])
def test_the_right_option_is_found_in_every_form_of_a_target(tmp_path, target, right):
    line = {**choice(0, right, gold=2), "target": target}
    found = picked(tmp_path, [line])
    (sample,) = found.right if right else found.wrong
    assert sample.options[2].right
    assert sample.options[2].given == right


def test_a_target_that_reads_as_a_number_may_be_the_text_of_an_option(tmp_path):
    line = {**choice(0, True, options=["3", "2", "1", "0"], gold=3), "target": "0"}
    (sample,) = picked(tmp_path, [line]).right
    assert [option.text for option in sample.options if option.right] == ["0"]


def test_pairs_with_one_continuation_are_options_with_their_own_prompts(tmp_path):
    line = choice(0, False)
    line["target"] = "was quick."
    line["arguments"] = {
        f"gen_args_{n}": {"arg_0": f"Sara thanked Mona because {name}", "arg_1": " was quick."}
        for n, name in enumerate(("Sara", "Mona"))
    }
    line["filtered_resps"] = [["-1.0", "False"], ["-9.0", "False"]]
    (sample,) = picked(tmp_path, [line]).wrong
    assert sample.prompt == ""
    assert [(option.text, option.right, option.given) for option in sample.options] == [
        ("Sara thanked Mona because Sara was quick.", False, True),
        ("Sara thanked Mona because Mona was quick.", True, False),
    ]


def test_acc_norm_is_by_characters(tmp_path):
    line = choice(0, True, "acc_norm", options=["x", "a much longer option"], gold=1)
    line["filtered_resps"] = [["-4.0", "False"], ["-8.0", "False"]]
    (sample,) = picked(tmp_path, [line], "acc_norm").right
    assert sample.options[1].given


def test_a_written_answer_stands_beside_the_right_one(tmp_path):
    found = picked(tmp_path, [written(0, True, " Cairo", "Cairo"), written(1, False, "Giza", "Cairo")], "exact_match")
    assert [(option.text, option.right) for option in found.right[0].options] == [("Cairo", True)]
    assert [(option.text, option.right) for option in found.wrong[0].options] == [("Giza", False), ("Cairo", True)]


def test_the_choice_does_not_depend_on_the_order_and_is_bounded(tmp_path):
    lines = [choice(n, n % 3 == 0, prompt=f"question {n}") for n in range(60)]
    first = picked(tmp_path / "a", lines, number=4)
    random.Random(5).shuffle(lines)
    assert picked(tmp_path / "b", lines, number=4) == first
    assert (len(first.right), len(first.wrong)) == (4, 4)


def test_parts_of_a_mark_and_marks_of_which_less_is_better_have_no_samples(tmp_path):
    half = {**choice(0, True), "acc": 0.4}
    assert picked(tmp_path / "a", [half]).right == ()
    assert picked(tmp_path / "b", [choice(0, True)], higher=False).right == ()


def test_a_long_prompt_keeps_its_beginning_and_its_end(tmp_path):
    line = choice(0, True, prompt="begin" + "ا" * 5000 + "the end")
    (sample,) = picked(tmp_path, [line]).right
    assert sample.prompt.startswith("begin") and sample.prompt.endswith("the end")
    assert len(sample.prompt) < 1300


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.pop("arguments"),
        lambda line: line.update(arguments={}),
        lambda line: line.update(arguments=[1]),
        lambda line: line.update(filtered_resps=[]),
        lambda line: line.update(filtered_resps=[["high", "False"]] * 4),
        lambda line: line.pop("target"),
        lambda line: line["arguments"].update(gen_args_0=3),
    ],
)
def test_a_line_of_another_form_is_refused_by_its_place(tmp_path, change):
    line = choice(1, True)
    change(line)
    with pytest.raises(ResultsError, match=r"samples_t_.*jsonl:2: not a sample as lm_eval 0\.4\.13 writes it"):
        picked(tmp_path, [choice(0, True), line])


def test_a_line_that_is_cut_is_refused_by_its_place(tmp_path):
    folder = Results().task("t", "acc", 0.5, samples=[choice(0, True)]).write(tmp_path)
    path = folder / f"samples_t_{STAMP}.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + json.dumps(choice(1, True))[:50], encoding="utf-8")
    with pytest.raises(ResultsError, match="jsonl:2: not valid JSON"):
        pick_samples(read_run(folder).tasks["t"], "acc", 3)
