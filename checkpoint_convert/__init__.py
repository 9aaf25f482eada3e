"""Cerebras checkpoints to Hugging Face releases and back, for every model of the Jais family."""
