"""Log-probabilities of many token sequences, in which what they share is computed once.

`tree.py` plans the work without torch, `scorer.py` does it, `positions.py` is the loss by position. Tasks and their
texts belong to `harness`.
"""
