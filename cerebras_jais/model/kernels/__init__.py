"""Attention in memory linear in the length: tiles on a CPU, FlexAttention on a GPU.

What a kernel computes of queries, keys and values belongs here; their projections are in `attention`.
"""
