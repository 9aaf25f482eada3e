"""The 20 models of the family as data: sizes with their provenance, the rules behind them, and the YAML made of them.

A published number and a rule of the family are here and nowhere else. How YAML is read is in `config`.
"""
