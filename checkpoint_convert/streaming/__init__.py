"""A plan carried out: bands of rows from file to file in bounded memory, with a digest of each tensor, to be resumed.

Which bytes go where is decided in `mapping`; this is how they move.
"""
