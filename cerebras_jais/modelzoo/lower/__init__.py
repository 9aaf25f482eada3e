"""Lowering: a phase through the Model Zoo's trainer up to the program that a CS system would compile; no cluster.

`child` alone imports Cerebras packages and replaces what they ask of a cluster; it is the main module of a process of
its own. What a program means does not belong here: `cerebras_jais.cirh` reads its text.
"""
