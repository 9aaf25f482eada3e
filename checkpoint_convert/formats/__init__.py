"""Files of weights in Hugging Face's formats: their headers read and written, their tensors found.

Nothing here knows the names of a model's tensors. The .mdl format is in `cerebras_jais.checkpoint`.
"""
