"""Text to tokens: reading documents, training a tokenizer, packing sequences, the Model Zoo's HDF5 layout."""
