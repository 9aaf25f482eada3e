"""HDF5 files: described by a child process, read without the HDF5 library, created and written.

Nothing here knows what the datasets of a file mean; that is in `checkpoint` and in `data`.
"""
