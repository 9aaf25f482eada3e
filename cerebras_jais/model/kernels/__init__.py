"""How a layer's numbers are computed where PyTorch's own choice of a library is not the quickest.

What a layer computes is in `model`.
"""
