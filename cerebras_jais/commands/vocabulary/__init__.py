"""`vocab` and `tokens`: one module for each verb of `vocab`, and the group of them.

What the verbs do is in `cerebras_jais/vocabulary`.
"""
