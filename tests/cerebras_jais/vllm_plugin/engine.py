"""vLLM's engine on one release, in a process of its own: the main module of `python -m`, given two files of JSON.

The first has `arguments` of vllm.LLM, `prompts` as ids, and `tokens` to generate. The second gets the ids of each
answer and, for each of them, the log-probabilities of the likeliest tokens and of the one chosen.
"""

import json
import sys
from pathlib import Path

LIKELIEST = 5

if __name__ == "__main__":
    from vllm import LLM, SamplingParams

    order = json.loads(Path(sys.argv[1]).read_text())
    engine = LLM(**order["arguments"])
    sampling = SamplingParams(temperature=0, max_tokens=order["tokens"], logprobs=LIKELIEST, ignore_eos=True)
    answers = engine.generate([{"prompt_token_ids": ids} for ids in order["prompts"]], sampling, use_tqdm=False)
    found = [
        {
            "ids": list(answer.outputs[0].token_ids),
            "logs": [{str(id): entry.logprob for id, entry in step.items()} for step in answer.outputs[0].logprobs],
        }
        for answer in answers
    ]
    Path(sys.argv[2]).write_text(json.dumps(found))
