"""Questions to a model behind an OpenAI-style endpoint, each asked once and its answer kept.

What belongs here is the asking: one request with its tries (`client.py`), the record of answers (`record.py`), many
requests at a time (`asking.py`). What is asked, and what is made of the answers, is the caller's. Nothing here needs
more than the standard library.
"""
