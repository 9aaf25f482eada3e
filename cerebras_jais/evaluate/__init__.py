"""What a trained model is worth: how well it predicts text that it has not seen.

The model itself is in `model`; loading a release is in `checkpoint_convert`.
"""
