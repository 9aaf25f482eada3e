"""The trainer YAML of the Model Zoo 2.10: read with its lines, typed key by key.

What belongs here knows the file format only. The models of the family are in `catalog`; whether the values of a file
fit together, and fit its data, is found in `launch`.
"""
