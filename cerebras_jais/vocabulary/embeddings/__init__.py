"""Embeddings for the new tokens of an extended tokenizer: learned from a donor, judged, and written with the base.

How a tokenizer is extended is in the folder above; how a checkpoint is opened and streamed is in `checkpoint_convert`.
"""
