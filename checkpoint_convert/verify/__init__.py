"""Checks of a conversion: manifests, tensors, logits layer by layer, the files and the code of a release.

Nothing here writes to a model. What is written into a release is decided in `checkpoint_convert.release`.
"""
