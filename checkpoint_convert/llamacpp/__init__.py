"""What llama.cpp makes of a model: GGUF files written from checkpoints and releases, and compared with them.

The bytes of the format are in `formats/gguf.py`, and which tensor is which in `mapping/rules.py`. Only what llama.cpp
wants to know of a model belongs here. The package `gguf` (extra `gguf`) is imported here and there alone.
"""
