"""Cerebras checkpoints to Hugging Face releases and back, for every model of the Jais family.

A conversion uses the folders in this order: `formats` opens files, `mapping` plans, `configs` translates the config,
`streaming` moves the bytes, `verify` checks the result; `llamacpp` is for GGUF files. `convert` calls them, and `cli`
is the command line. How a model computes does not belong here: that is in `cerebras_jais.model`.
"""
