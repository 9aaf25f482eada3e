"""The Model Zoo's `model:` section and Hugging Face's config.json, each converted to the other, older forms included.

Only values of configs belong here. Tensors are in `mapping`.
"""
