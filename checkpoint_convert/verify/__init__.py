"""The proofs of a conversion: manifests and digests, tensors compared, logits layer by layer, the code of a release.

Nothing here changes a file.
"""
