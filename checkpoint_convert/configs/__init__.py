"""A `model:` section of the Model Zoo and a config.json of Hugging Face, translated both ways, old forms included.

Only values of configs belong here; tensors are in `mapping`.
"""
