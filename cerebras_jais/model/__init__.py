"""The reference path: one decoder that is Jais or Llama by its config, in plain PyTorch."""
