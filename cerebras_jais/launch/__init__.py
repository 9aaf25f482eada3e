"""What a run would do, before it does it: its phases and steps, problems, sizes.

Both trainers, the dry run and `config check` take their answers from here. Nothing here trains or writes a file.
"""
