"""Which tensor of one side is which of the other: operations with an inverse, one table of rules, the plan of a conversion.

Nothing here reads or writes a byte of a tensor.
"""
