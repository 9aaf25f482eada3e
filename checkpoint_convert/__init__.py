"""Cerebras checkpoints to Hugging Face releases and back, for every model of the Jais family.

The way of a conversion: `formats` opens files, `mapping` plans, `configs` translates the configs, `streaming` moves the
bytes, `verify` proves the result. `convert` does all of it, `cli` is the command line.
"""
