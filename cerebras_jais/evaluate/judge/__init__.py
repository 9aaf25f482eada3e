"""Answers to open questions, judged by another model, as the card of the family does it.

What belongs here: questions (`questions.py`), how a model answers them (`answering.py`), what a judge is asked
(`asking.py`) and how its words are read (`verdicts.py`), what follows (`report.py`, `statistics.py`, `plots.py`).
Requests are in `endpoint`, the model itself in `chat`. `data/NOTICE` says which files come from FastChat.
"""
