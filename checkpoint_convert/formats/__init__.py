"""Files of a Hugging Face release: weight files, JSON files, and the names of all its files; and GGUF files.

Nothing here knows the names of a model's tensors. The .mdl format is in `cerebras_jais.checkpoint`.
"""
