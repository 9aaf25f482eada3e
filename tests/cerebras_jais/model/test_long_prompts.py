"""A prompt is fed in pieces: the same tokens as in one, and memory that grows with its length and not its square."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cerebras_jais.model import generate as module
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.process import PATIENCE
from tests.tolerances import SAME_IN_FLOAT32

LONG = """
import resource, torch
from pathlib import Path
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.generate import generate
from tests.cerebras_jais.model.examples import jais_section
torch.set_num_threads(1)
model = LanguageModel(DecoderConfig.from_section(jais_section()))
pages = int(Path("/proc/self/statm").read_text().split()[0])
room = pages * resource.getpagesize() + (2 << 30)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
print(generate(model, torch.randint(97, (1, 20_000)), 2).shape[1])
"""


@pytest.mark.parametrize("section", [jais_section(), llama_section()], ids=["jais", "llama"])
@pytest.mark.parametrize("piece", [1, 7, 40])
def test_a_prompt_fed_in_pieces_has_the_logits_of_one_fed_whole(section, piece, monkeypatch):
    torch.manual_seed(0)
    model = LanguageModel(DecoderConfig.from_section(section)).eval()
    ids = torch.randint(97, (2, 40))
    monkeypatch.setattr(module, "_PREFILL", piece)
    said = []
    real = model.logits
    monkeypatch.setattr(model, "logits", lambda *a, **o: said.append(real(*a, **o)) or said[-1])
    out = module.generate(model, ids, 3)
    assert len(said) == -(-40 // piece) + 2
    with torch.no_grad():
        whole = real(out[:, :-1])[:, -3:]
    torch.testing.assert_close(torch.cat(said[-3:], 1), whole, rtol=0, atol=SAME_IN_FLOAT32)


@pytest.mark.slow
def test_a_prompt_of_20000_tokens_is_continued_in_two_gigabytes_of_memory():
    command = [sys.executable, "-c", LONG]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, timeout=PATIENCE)
    assert done.stdout.strip() == "20002", done.stderr
