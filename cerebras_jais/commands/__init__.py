"""The verbs of `cerebras-jais`, one module per group: options, help, what is printed, exit statuses.

Work does not belong here: a verb reads its options, calls the folders below, and prints. Modules import nothing heavy
until a verb runs.
"""
