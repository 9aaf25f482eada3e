"""Text to tokens to rows: documents, tokenizers, token stores, mixtures, packing, the Model Zoo's HDF5 data.

What a training run does with the samples is in `train`.
"""
