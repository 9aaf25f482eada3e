"""Recipes: the trainer YAML, typed."""
