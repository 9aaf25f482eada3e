"""Text to tokens: documents, tokenizers, token stores, mixtures, packing, and the Model Zoo's HDF5 data, written, read in
its order, shown, counted.

What a training run does with the samples is in `train`.
"""
