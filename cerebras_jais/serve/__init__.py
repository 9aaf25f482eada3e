"""A model behind OpenAI's HTTP interface, on one machine, with the standard library alone.

What belongs here: requests read in bounds (`http11.py`), what a body asks for (`bodies.py`), who may ask (`access.py`),
the one thread that has the model (`worker.py`), the JSON of answers (`answers.py`), and the connections (`server.py`).
How a model answers belongs to `chat`, questions to other servers to `endpoint`.
"""
