"""What is said of lowered phases, from facts.

Contract: every number that is printed is in the facts; a phase with a problem is not good; phases with one hash are one
program, and it is said where the numbers of constants differ; the table has a row for each phase.
"""

import pytest

from cerebras_jais.modelzoo.lower.report import is_good, lines, problems_of, shared, table

PROGRAM = {
    "step": "train",
    "hash": "a" * 64,
    "exact_hash": "b" * 64,
    "batch_size": 1120,
    "operations": {f"Kind{number}": 1000 - number for number in range(10)},
    "product_flops": 1010,
    "estimated_flops": 1000,
    "weights": {"tensors": 2, "numbers": 12345, "bytes": 49380, "dtypes": {"f32": 12345}},
    "states": {"tensors": 0, "numbers": 0, "bytes": 0, "dtypes": {}},
    "changed": ["a"],
    "read": ["b", "c", "d"],
    "untouched": [],
    "inputs": {"input_ids": "tensor<8x128xi32>"},
    "dtypes": {"f32": 7},
    "constraints_checked": 235,
    "constraints_unknown": 4529,
    "violations": {},
}
FOUND = {
    "file": "configs/a/b.yaml",
    "phase": 1,
    "phases": 2,
    "model": "jais_family",
    "seconds": 9.4,
    "processor_seconds": 8.0,
    "memory_bytes": 1_400_000_000,
    "stand_ins": ["trainer.fit.train_dataloader"],
    "programs": [PROGRAM],
}


def test_a_phase_is_described_in_numbers():
    text = "\n".join(lines(FOUND))
    assert text.startswith("configs/a/b.yaml, phase 1 of 2: lowered in 9 s and 1.4 GB\n")
    for words in (
        "the data of trainer.fit.train_dataloader is not here",
        "train: program aaaaaaaaaaaaaaaa, 1,120 sequences in a step",
        "9,955: Kind0 1,000,",
        "2 more kinds",
        "1010 in matrix products (+1.00%) of 1000 by the config",
        "12,345 numbers in 2 tensors",
        "0 numbers in 0 tensors, 0 GB: none",
        "only reads  3: b, c, ...",
        "none violated; the Cerebras software knows those of 235 of 4,764 operations",
    ):
        assert words in text
    assert is_good(FOUND)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"file": "a", "error": "a, line 3: wrong"}, "a, line 3: wrong"),
        (
            {**FOUND, "programs": [{**PROGRAM, "violations": {"relu": "must be 2D"}}]},
            "configs/a/b.yaml, phase 1, train: relu violates a constraint of CS systems: must be 2D",
        ),
    ],
)
def test_a_phase_with_a_problem_is_not_good(found, words):
    assert not is_good(found)
    assert list(problems_of(found)) == [words]


def test_phases_with_one_hash_are_one_program():
    other = {**FOUND, "file": "c", "phases": 1, "programs": [{**PROGRAM, "exact_hash": "c" * 64}]}
    apart = {**FOUND, "file": "d", "programs": [{**PROGRAM, "hash": "e" * 64}]}
    assert list(shared([FOUND, apart])) == []
    assert list(shared([FOUND, FOUND])) == [
        "one program, aaaaaaaaaaaaaaaa: configs/a/b.yaml (phase 1), train; configs/a/b.yaml (phase 1), train"
    ]
    assert list(shared([FOUND, other, apart])) == [
        "one program, aaaaaaaaaaaaaaaa: configs/a/b.yaml (phase 1), train; c, train; "
        "the numbers of its constants differ"
    ]


def test_the_table_has_a_row_for_each_phase():
    evaluation = {**PROGRAM, "step": "evaluate", "hash": "e" * 64, "operations": {"Add": 12}}
    head, line, first, second = table([FOUND, {**FOUND, "programs": [PROGRAM, evaluation]}])
    assert head.count("|") == line.count("|") == first.count("|")
    assert first.startswith("| a/b | 1 of 2 | 9,955 | 1010 | 101.00% | 4.94e-05 GB | 0 GB | 1 | aaaaaaaaaaaaaaaa | - |")
    assert second.endswith("| 12 | eeeeeeeeeeeeeeee |")
