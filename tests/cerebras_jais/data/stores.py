"""Token stores in memory."""

from itertools import chain

import numpy as np

from cerebras_jais.data.token_store import Store
from cerebras_jais.encoding import Tokens


def tokens_of(documents):
    """Lists of token ids as a batch of documents."""
    ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
    return Tokens(np.array(list(chain.from_iterable(documents)), dtype=np.uint32), ends)


def store_of(documents, eos_id=None):
    """The documents that are not empty, each with the end of text behind it where there is one."""
    end = [] if eos_id is None else [eos_id]
    return Store([tokens_of([[*document, *end] for document in documents if len(document)])])
