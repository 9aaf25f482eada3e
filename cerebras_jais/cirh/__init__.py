"""CIRH, the program that a CS system is given for one step: read from its text, summed up, and run on a CPU.

What follows from the text of a program alone belongs here, in PyTorch and the standard library. How a config is lowered
to that text needs the Cerebras software, and is in `modelzoo`.
"""
