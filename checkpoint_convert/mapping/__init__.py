"""Which tensor of one side is which of the other: operations with an inverse, a table of rules, the plan.

Nothing here reads or writes a byte of a tensor.
"""
