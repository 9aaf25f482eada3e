"""The Jais family of Arabic-English language models: trained, converted and checked against the Cerebras Model Zoo.

At the top stand what every folder uses (errors, ranges, files) and the command line; everything else has a folder.
"""

__version__ = "0.1.0"
