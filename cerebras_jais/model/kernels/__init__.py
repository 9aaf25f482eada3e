"""How a layer's numbers are computed where PyTorch has no function that serves: quickly, and in little memory.

What a layer computes is in `model`.
"""
