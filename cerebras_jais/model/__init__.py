"""The reference path: one decoder that is Jais or Llama by its config, in plain PyTorch, with the Model Zoo's names.

The mathematics of a model belongs here, with its config, its tensors and how they are loaded. Training is in
`optimizer` and `train`.
"""
