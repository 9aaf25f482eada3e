"""A conversion that is killed anywhere goes on to the same bytes, and nothing wrong ever has a final name.

Contract: whatever the moment of the kill, a file or directory under a final name is byte for byte what an undisturbed
conversion makes; the same command then ends with all of them, and re-does only what was in flight; another command to
the same target starts anew; two at once do not harm each other. (tests/attacks/kills.py draws many more moments.)
"""

import multiprocessing
import os
import time

import pytest

from cerebras_jais.errors import UserError
from checkpoint_convert.convert import convert_to_cerebras, convert_to_hf
from checkpoint_convert.streaming.journal import working_beside
from tests.attacks.kills import Moment, contents, steps_of, subjects, trial
from tests.checkpoint_convert.examples import jais_section, random_model, state_of, write_checkpoint
from tests.marks import slow_except
from tests.process import PATIENCE

pytestmark = pytest.mark.slow

DIRECTIONS = ("to-hf", "to-cerebras")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return dict(zip(DIRECTIONS, subjects(tmp_path_factory.mktemp("kills")), strict=False))


@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_kill_before_a_system_call_is_gone_on_from(both, direction, tmp_path):
    name, source, expected, output = both[direction]
    steps = steps_of(name, source, tmp_path / output)
    for number in [*range(0, steps // 2, 5), *range(steps // 2, steps)]:  # the files beside the weights come last
        assert trial(name, source, expected, output, [Moment("before", number)]) == ""


@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("share", slow_except([0.6], [0.01, 0.3, 0.6, 0.99]))
def test_a_kill_while_tensors_move_is_gone_on_from(both, direction, share):
    name, source, expected, output = both[direction]
    assert trial(name, source, expected, output, [Moment("at", share), Moment("at", share), Moment("after", 0.0)]) == ""


class StoppedError(Exception):
    pass


def stopping_at(share):
    done = 0

    def progress(nbytes, total):
        nonlocal done
        done += nbytes
        if done > share * total:
            raise StoppedError

    return progress


def checkpoint_in(directory):
    section = jais_section(num_hidden_layers=6)
    return write_checkpoint(directory / "c.mdl", section, state_of(random_model(section)))


def listing(directory):
    return sorted(path.name for path in directory.iterdir())


def test_what_was_finished_is_not_done_again(tmp_path):
    checkpoint = checkpoint_in(tmp_path)
    with pytest.raises(StoppedError):
        convert_to_hf(checkpoint, tmp_path / "release", progress=stopping_at(0.7))
    assert listing(tmp_path) == [".release.partial", "c.mdl"]
    seen = []
    report = convert_to_hf(checkpoint, tmp_path / "release", progress=lambda done, total: seen.append((done, total)))
    already, total = seen[0]
    assert 0.4 * total < already < 0.8 * total
    assert sum(done for done, _ in seen) == total
    assert report.continued > 10
    assert listing(tmp_path) == ["c.mdl", "release"]
    convert_to_hf(checkpoint, tmp_path / "undisturbed")
    assert contents(tmp_path / "release") == contents(tmp_path / "undisturbed")


def test_a_finished_tensor_that_is_damaged_meanwhile_is_done_again(tmp_path):
    checkpoint = checkpoint_in(tmp_path)
    with pytest.raises(StoppedError):
        convert_to_hf(checkpoint, tmp_path / "release", progress=stopping_at(0.9))
    (shard,) = (tmp_path / ".release.partial").rglob("*.safetensors")
    data = bytearray(shard.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    for at in range(header, len(data), 4096):
        data[at] ^= 1
    shard.write_bytes(data)
    convert_to_hf(checkpoint, tmp_path / "release")
    convert_to_hf(checkpoint, tmp_path / "undisturbed")
    assert contents(tmp_path / "release") == contents(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["option", "input"])
def test_another_command_does_not_go_on_with_what_it_finds(tmp_path, change):
    checkpoint = checkpoint_in(tmp_path)
    with pytest.raises(StoppedError):
        convert_to_hf(checkpoint, tmp_path / "release", progress=stopping_at(0.7))
    dtype = "bfloat16" if change == "option" else None
    if change == "input":
        os.utime(checkpoint, ns=(1, 1))
    assert convert_to_hf(checkpoint, tmp_path / "release", dtype=dtype).continued == 0
    convert_to_hf(checkpoint, tmp_path / "undisturbed", dtype=dtype)
    assert contents(tmp_path / "release") == contents(tmp_path / "undisturbed")


def test_a_packed_checkpoint_is_begun_anew_and_comes_out_the_same(tmp_path):
    convert_to_hf(checkpoint_in(tmp_path), tmp_path / "release")
    with pytest.raises(StoppedError):
        convert_to_cerebras(tmp_path / "release", tmp_path / "a.mdl", compression="lz4", progress=stopping_at(0.7))
    assert convert_to_cerebras(tmp_path / "release", tmp_path / "a.mdl", compression="lz4").continued == 0
    (tmp_path / "again").mkdir()
    convert_to_cerebras(tmp_path / "release", tmp_path / "again" / "a.mdl", compression="lz4")
    assert (tmp_path / "a.mdl").read_bytes() == (tmp_path / "again" / "a.mdl").read_bytes()


def test_an_input_that_changes_while_it_is_read_is_one_error(tmp_path):
    checkpoint = checkpoint_in(tmp_path)

    def touch(done, total):
        os.utime(checkpoint, ns=(1, 1))

    with pytest.raises(UserError, match=r"c\.mdl: changed while it was read"):
        convert_to_hf(checkpoint, tmp_path / "release", progress=touch)
    assert listing(tmp_path) == ["c.mdl"]


def test_the_second_of_two_at_once_is_refused(tmp_path):
    checkpoint = checkpoint_in(tmp_path)
    with working_beside(tmp_path / "release"), pytest.raises(UserError, match="another conversion is writing it"):
        convert_to_hf(checkpoint, tmp_path / "release")
    convert_to_hf(checkpoint, tmp_path / "release")


@pytest.mark.slow
def test_several_at_once_make_one_right_release(tmp_path):
    checkpoint = checkpoint_in(tmp_path)
    context = multiprocessing.get_context("fork")

    def attempt(outcomes):
        try:
            convert_to_hf(checkpoint, tmp_path / "release")
            outcomes.put("made")
        except UserError as error:
            outcomes.put("refused" if "another conversion" in str(error) or "exists" in str(error) else str(error))

    outcomes = context.Queue()
    processes = [context.Process(target=attempt, args=(outcomes,)) for _ in range(4)]
    for process in processes:
        process.start()
        time.sleep(0.02)
    found = sorted(outcomes.get(timeout=PATIENCE) for _ in processes)
    for process in processes:
        process.join()
    assert found == ["made", "refused", "refused", "refused"]
    convert_to_hf(checkpoint, tmp_path / "undisturbed")
    assert contents(tmp_path / "release") == contents(tmp_path / "undisturbed")
    assert listing(tmp_path) == ["c.mdl", "release", "undisturbed"]
