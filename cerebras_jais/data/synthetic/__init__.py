"""Text that a model writes from text: the documents of a source through an endpoint, into a source of their own.

What belongs here is what is asked and what becomes of the answers. Requests are in `endpoint`; cleaning, mixing and
packing are those of any other source, in `data.recipe`.
"""
