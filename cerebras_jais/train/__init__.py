"""The reference trainer: runs a Model Zoo trainer YAML on a CPU or GPU."""
