"""A model's vocabulary for one more language: the tokenizer extended with a donor's tokens; in `embeddings`, theirs.

Training a tokenizer from text is in `data`; training the extended model is in `train`.
"""
