"""A vocabulary grown for another language: embeddings of the new tokens, learned from a donor model.

Tokenizers are trained in `data`; a checkpoint is read and written by `checkpoint_convert`.
"""
