"""The plugin for the Cerebras Model Zoo 2.10, and launches on CS systems.

Only modules here import Cerebras packages; most of them run on the user node of a cluster only.
"""
