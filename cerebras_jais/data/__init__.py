"""Text to tokens: documents, tokenizers, packing, and the Model Zoo's HDF5 data, written, read in its order, shown.

What a training run does with the samples is in `train`.
"""
