"""The Jais family of Arabic-English language models: trained, converted and checked against the Cerebras Model Zoo."""

__version__ = "0.1.0"
