"""Conversations to packed training data: read, rendered with the family's prompts, encoded, and packed.

What holds for any tokens, packing and the HDF5 files, is in `data`; talking to a model does not belong here.
"""
