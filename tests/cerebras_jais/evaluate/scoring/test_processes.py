"""Several processes give the scores of one.

Contract: each request has the likelihood that one process gives it, whatever is answered before; a process that cannot
open its model ends the evaluation with one line, and no process outlives it.
"""

import multiprocessing
from functools import partial

import pytest

from cerebras_jais.chat.forward import Forward
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.scoring.processes import log_probabilities_of_processes
from cerebras_jais.evaluate.scoring.scorer import likelihoods, score_requests
from tests.cerebras_jais.evaluate.scoring.test_scorer import drawn
from tests.cerebras_jais.model.examples import jais_section
from tests.checkpoint_convert.examples import random_model

pytestmark = pytest.mark.slow


def open_forward(number, *, ending=None):
    """The model of a process; one that ends at once where it is to."""
    if ending is not None:
        raise ending
    return Forward(random_model(jais_section()))


def test_two_processes_give_the_scores_of_one():
    before = set(multiprocessing.active_children())
    forward, requests = open_forward(0), drawn()
    whole = dict(score_requests(forward, requests, batch_tokens=40))
    answered = {1, 2}
    scored = log_probabilities_of_processes(forward, open_forward, requests, answered, 2, batch_tokens=40)
    found = dict(likelihoods(requests, answered, scored))
    assert found.keys() == whole.keys() - answered
    for number, likelihood in found.items():
        assert likelihood.log_likelihood == pytest.approx(whole[number].log_likelihood, rel=1e-12)
        assert likelihood.is_greedy == whole[number].is_greedy
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize(
    ("ending", "words"), [(SystemExit(3), "has ended before its work"), (UserError("no such GPU"), "no such GPU")]
)
def test_a_process_that_ends_before_its_work_is_said(ending, words):
    before = set(multiprocessing.active_children())
    work = log_probabilities_of_processes(open_forward(0), partial(open_forward, ending=ending), drawn(), (), 2)
    with pytest.raises(UserError, match=words):
        list(work)
    assert set(multiprocessing.active_children()) <= before
