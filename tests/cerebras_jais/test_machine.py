"""What a process may take of its machine, and its place among others.

Contract: the limit of a container counts, in the files of both kinds of control groups, and what it keeps of files
counts as free; torchrun's variables are taken as a whole, and what is missing or senseless in them is named.
"""

import os

import pytest

from cerebras_jais.errors import UserError
from cerebras_jais.machine import Place, available_memory, machine_memory, place_of_process

GB = 10**9
ALL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
SECOND = {
    "memory.max": f"{GB}\n",
    "memory.current": f"{GB // 2}\n",
    "memory.stat": f"anon 7\nactive_file {GB // 8}\ninactive_file {GB // 8}\n",
}
FIRST = {
    "memory/memory.limit_in_bytes": f"{GB}\n",
    "memory/memory.usage_in_bytes": f"{GB // 2}\n",
    "memory/memory.stat": f"cache 7\ntotal_active_file {GB // 8}\ntotal_inactive_file {GB // 8}\n",
}


@pytest.mark.parametrize(
    ("files", "memory", "free"),
    [
        (SECOND, GB, 3 * GB // 4),
        (FIRST, GB, 3 * GB // 4),
        (SECOND | {"memory.stat": "anon 7\n"}, GB, GB // 2),
        (SECOND | {"memory.current": f"{2 * GB}\n"}, GB, 0),
        (SECOND | {"memory.max": "max\n"}, ALL, 8 * GB),
        (FIRST | {"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, ALL, 8 * GB),
        ({"memory.max": "damaged"}, ALL, 8 * GB),
        ({}, ALL, 8 * GB),
    ],
)
def test_the_limit_of_a_container_counts(tmp_path, files, memory, free):
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {8 * GB // 1024} kB\n")
    assert machine_memory(tmp_path) == memory
    assert available_memory(tmp_path, tmp_path / "meminfo") == pytest.approx(free, abs=1024)


def test_where_linux_does_not_say_what_is_free_it_is_unknown(tmp_path):
    assert available_memory(tmp_path, tmp_path / "meminfo") is None


WHOLE = {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"} | {
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_torchrun_says_the_place_of_a_process():
    assert place_of_process(WHOLE) == Place(5, 8, 1, 4)
    assert not place_of_process(WHOLE).is_first
    for alone in ({}, {"RANK": "3"}, WHOLE | {"WORLD_SIZE": "1"}):
        assert place_of_process(alone) == Place(0, 1, 0, 1)
        assert place_of_process(alone).is_first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc', not a whole number from 1 on; .* or unset WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', not a whole number from 1 on"),
        ({"RANK": "8"}, "RANK is '8', not a whole number from 0 to 7"),
        ({"RANK": "-1"}, "RANK is '-1', not a whole number from 0 to 7"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000', not a whole number from 0 to 65535"),
        ({"LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE is '', not a whole number from 1 on"),
        ({"MASTER_ADDR": None}, "WORLD_SIZE is 8, and not set are: MASTER_ADDR; start the processes with torchrun"),
        ({"RANK": None, "MASTER_PORT": None}, "not set are: RANK, MASTER_PORT; "),
    ],
)
def test_variables_that_are_missing_or_make_no_sense_are_named(changes, said):
    environment = {name: text for name, text in (WHOLE | changes).items() if text is not None}
    with pytest.raises(UserError, match=said):
        place_of_process(environment)
