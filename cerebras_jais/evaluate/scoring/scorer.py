"""Log-likelihoods of requests by a model, batch by batch of their tree.

H heads, G key/value heads, L queries, S keys, D head size, M hidden, V vocabulary, P tokens of the past, T of a batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cerebras_jais.chat.forward import Forward
from cerebras_jais.evaluate.scoring.tree import Batch, Request, Tree, needed, plan, unanswered

BATCH_TOKENS = 2048
_BIAS_ELEMENTS = 2**25  # of a batch, heads x queries x keys: 128 MiB in float32
_LOGITS = 2**24  # elements at a time, rows x vocabulary: 64 MiB in float32


class Likelihood(NamedTuple):
    """Of the scored tokens of a request: the sum of ln p, and whether each is the likeliest."""

    log_likelihood: float
    is_greedy: bool


class Scored(NamedTuple):
    """Tokens that were scored together, [n] each: request of each, position of the token that predicts it, ln p, and
    whether it is the likeliest."""

    requests: np.ndarray
    positions: np.ndarray
    log_p: np.ndarray
    likeliest: np.ndarray


class _Past(NamedTuple):
    """Keys and values of some nodes, [G, P, D] for each layer."""

    nodes: np.ndarray
    k: list[Tensor]
    v: list[Tensor]


def score_requests(
    forward: Forward,
    requests: Sequence[Request],
    answered: Collection[int] = (),
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[tuple[int, Likelihood]]:
    """The number of each request that is not among `answered`, with its likelihood, as they are made.

    Memory is bounded whatever the lengths and the vocabulary, but for the keys and values of one path, and a token that
    several requests share is read once. Batches do not depend on what is answered, so a likelihood is the same to the
    last bit in a run that begins anew and in one that goes on. A request without a scored token has likelihood 0.
    """
    scored = log_probabilities(forward, requests, answered, batch_tokens=batch_tokens)
    return likelihoods(requests, answered, scored)


def likelihoods(
    requests: Sequence[Request], answered: Collection[int], scored: Iterable[Scored]
) -> Iterator[tuple[int, Likelihood]]:
    """The number of each request that is not among `answered`, with its likelihood, once all its tokens are scored."""
    total, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
    left = np.array([request.predicted for request in requests])
    for number in sorted(set(np.flatnonzero(left == 0).tolist()) - set(answered)):
        yield number, Likelihood(0.0, True)
    for part in scored:
        np.add.at(total, part.requests, part.log_p)
        np.logical_and.at(greedy, part.requests, part.likeliest)
        np.subtract.at(left, part.requests, 1)
        for number in np.unique(part.requests).tolist():
            if left[number] == 0 and number not in answered:
                yield number, Likelihood(float(total[number]), bool(greedy[number]))


@torch.inference_mode()
def log_probabilities(
    forward: Forward,
    requests: Sequence[Request],
    answered: Collection[int] = (),
    *,
    batch_tokens: int = BATCH_TOKENS,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Scored]:
    """The scored tokens of the requests that are not among `answered`, and of some others, batch by batch.

    Args:
        part: which of how many equal parts of the batches.
    """
    tree = plan(requests, tokens=batch_tokens, attended=_BIAS_ELEMENTS // forward.config.num_heads)
    share, of = part
    asked = unanswered(tree.batches, answered)
    mine = set(asked[len(asked) * share // of : len(asked) * (share + 1) // of])
    batches = [(number, tree.batches[number]) for number in needed(tree.batches, mine)]
    past = _Past(np.empty(0, np.int64), [], [])
    for place, (number, batch) in enumerate(batches):
        keep = batches[place + 1][1].past if place + 1 < len(batches) else np.empty(0, np.int64)
        assert len(past.nodes) == len(batch.past)
        x_TM, past = _read(forward, tree, batch, past, keep)
        if number in mine:
            yield Scored(batch.requests, tree.depths[batch.nodes], *_scored(forward, x_TM, batch))


def _read(forward: Forward, tree: Tree, batch: Batch, past: _Past, keep: np.ndarray) -> tuple[Tensor, _Past]:
    """Hidden states [T, M] of a batch, and the keys and values of the nodes to keep."""
    device = forward.device
    pool = np.concatenate([past.nodes, np.arange(batch.start, batch.end)])
    kept = torch.from_numpy(np.searchsorted(pool, keep)).to(device)
    found = _Past(keep, [], [])
    chains = []
    for chain in batch.chains:
        seen = np.concatenate([chain.ancestors, np.arange(chain.start, chain.end)])
        places = torch.from_numpy(np.searchsorted(pool, seen)).to(device)
        queries, keys = np.arange(len(chain.ancestors), len(seen)), np.arange(len(seen))
        queries_L, keys_S = torch.from_numpy(queries).to(device), torch.from_numpy(keys).to(device)
        bias = forward.bias(keys_S[None, :] <= queries_L[:, None], queries_L, keys_S)
        chains.append((slice(chain.start - batch.start, chain.end - batch.start), places, bias))
    repeats = forward.config.num_heads // forward.config.num_kv_groups

    def attend(layer: int, q_HTD: Tensor, k_GTD: Tensor, v_GTD: Tensor) -> Tensor:
        if past.k:
            k_GTD, v_GTD = torch.cat([past.k[layer], k_GTD], 1), torch.cat([past.v[layer], v_GTD], 1)
        found.k.append(k_GTD.index_select(1, kept))
        found.v.append(v_GTD.index_select(1, kept))
        out_HTD = torch.empty_like(q_HTD)
        for rows, places, bias in chains:
            k_GSD, v_GSD = k_GTD.index_select(1, places), v_GTD.index_select(1, places)
            if repeats > 1:
                k_GSD, v_GSD = k_GSD.repeat_interleave(repeats, 0), v_GSD.repeat_interleave(repeats, 0)
            out_HTD[:, rows] = F.scaled_dot_product_attention(
                q_HTD[None, :, rows], k_GSD[None], v_GSD[None], attn_mask=bias, scale=forward.config.attention_scale
            )[0]
        return out_HTD

    ids_T = torch.from_numpy(tree.tokens[batch.start : batch.end]).to(device)
    depths_T = torch.from_numpy(tree.depths[batch.start : batch.end]).to(device)
    return forward.hidden(ids_T, depths_T, attend), found


def _scored(forward: Forward, x_TM: Tensor, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """ln p of the scored tokens, and whether each is the likeliest; each wanted row of logits is made once."""
    nodes, rows = np.unique(batch.nodes, return_inverse=True)
    log_p, likeliest = np.empty(len(rows)), np.empty(len(rows), bool)
    at_once = max(1, _LOGITS // forward.config.vocab_size)
    for start in range(0, len(nodes), at_once):
        places = torch.from_numpy(nodes[start : start + at_once] - batch.start).to(x_TM.device)
        logits_RV = forward.logits(x_TM.index_select(0, places))
        mine = np.flatnonzero((start <= rows) & (rows < start + at_once))
        row, target = (torch.from_numpy(a[mine] - b).to(x_TM.device) for a, b in ((rows, start), (batch.targets, 0)))
        log_p[mine] = (logits_RV[row, target] - logits_RV.logsumexp(1)[row]).cpu().numpy()
        likeliest[mine] = (logits_RV.argmax(1)[row] == target).cpu().numpy()
    return log_p, likeliest
