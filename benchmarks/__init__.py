"""Measurements for BENCHMARKS.md: programs, not part of the installed package."""
