"""HDF5 files of strangers and of ours: inspected in a process of its own, laid out, read and written past the library.

Nothing here knows what the datasets of a file mean.
"""
