"""The checks of a release before it is published (`checkpoint-convert release-check`), and what they say of another's.

They read a release and write nothing. What compares two models is in `checkpoint_convert.verify`, which they use.
"""
