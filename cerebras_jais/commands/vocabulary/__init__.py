"""The verbs of `vocab`, and `tokens`: one module for each verb of `vocab`, and one with their group.

What they do does not belong here but in `cerebras_jais.vocabulary`.
"""
