"""One document before it is tokenised: repaired, normalised, its language told, judged by heuristics.

`cleaner.py` is the front. Nothing here reads files, knows other documents, or needs more than the standard library.
"""
