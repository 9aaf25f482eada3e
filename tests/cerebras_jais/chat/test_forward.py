"""The cached forward pass has the logits of the decoder, which reads a whole text at once and keeps nothing."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from cerebras_jais.chat import forward as module
from cerebras_jais.chat.engine import never
from cerebras_jais.chat.forward import Forward
from tests.cerebras_jais.model.examples import jais_section, llama_section, sharp_model
from tests.process import PATIENCE
from tests.tolerances import SAME_IN_FLOAT32

SECTIONS = {
    "jais": jais_section(),
    "jais-interpolated": jais_section(pos_scaling_factor=4.0),
    "jais-untied": jais_section(share_embedding_weights=False),
    "llama": llama_section(),
    "llama-grouped": llama_section(kv_groups=4),
}
LONG = """
import resource, torch
from pathlib import Path
from cerebras_jais.chat.engine import never
from cerebras_jais.chat.forward import Forward
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.config import DecoderConfig
from tests.cerebras_jais.model.examples import jais_section
torch.set_num_threads(1)
forward = Forward(LanguageModel(DecoderConfig.from_section(jais_section())).eval())
pages = int(Path("/proc/self/statm").read_text().split()[0])
room = pages * resource.getpagesize() + (2 << 30)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
with torch.inference_mode():
    cache = forward.new_cache(1, 20_001)
    forward.prefill(torch.randint(97, (20_000,)).tolist(), 0, cache, 0, 0, never)
    print(*forward.step([1], cache, [0], 20_000).shape)
"""


@pytest.fixture(params=SECTIONS)
def pair(request):
    model = sharp_model(SECTIONS[request.param])
    return model, Forward(deepcopy(model))  # which takes the weights over


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=SAME_IN_FLOAT32)


@torch.inference_mode()
@pytest.mark.parametrize("piece", [16, 23, 60])
def test_a_prompt_fed_in_pieces_has_the_logits_of_one_fed_whole(pair, piece, monkeypatch):
    model, forward = pair
    monkeypatch.setattr(module, "_LONGEST_PIECE", piece)
    pieces = []
    fed = forward._prompt_piece
    monkeypatch.setattr(forward, "_prompt_piece", lambda *given: pieces.append(given) or fed(*given))
    ids = torch.randint(97, (60,)).tolist()
    logits_V = forward.prefill(ids, 0, forward.new_cache(1, 60), 0, 0, never)
    assert len(pieces) == -(-60 // piece)
    same(logits_V, model.logits(torch.tensor([ids]))[0, -1])


@torch.inference_mode()
def test_rows_of_unequal_lengths_have_the_logits_that_each_has_alone(pair):
    model, forward = pair
    rows = [torch.randint(97, (length,)).tolist() for length in (3, 11, 7)]
    longest, new = 11, 9
    cache, starts = forward.new_cache(3, longest + new), [longest - len(row) for row in rows]
    for number, row in enumerate(rows):
        same(
            forward.prefill(row, 0, cache, number, starts[number], never),
            model.logits(torch.tensor([row]))[0, -1],
        )
    for step in range(new):
        tokens = torch.randint(97, (3,)).tolist()
        logits_BV = forward.step(tokens, cache, starts, longest + step)
        for row, token, logits_V in zip(rows, tokens, logits_BV, strict=True):
            row.append(token)
            same(logits_V, model.logits(torch.tensor([row]))[0, -1])


@pytest.mark.slow
def test_a_prompt_of_20000_tokens_is_continued_in_two_gigabytes_of_memory():
    command = [sys.executable, "-c", LONG]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, timeout=PATIENCE)
    assert done.stdout.strip() == "1 97", done.stderr
