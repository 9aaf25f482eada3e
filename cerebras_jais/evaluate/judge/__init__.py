"""Answers to open questions, judged by another model, as the card of the family does it.

What belongs here: questions (`questions.py`), how a model answers them (`writers.py`, `answering.py`), files of answers
(`answers.py`), what a judge is asked (`asking.py`), what it said (`judgements.py`, read by `verdicts.py`), and what
follows (`report.py`, `statistics.py`, `plots.py`). Requests are in `endpoint`, the model is in `chat`. `data/NOTICE`
says which files come from FastChat.
"""
