"""Evaluation of a trained model: how well it predicts text that it has not seen.

The model itself is in `model`; loading a release is in `checkpoint_convert`.
"""
