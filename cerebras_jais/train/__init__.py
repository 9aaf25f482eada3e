"""The reference trainer: runs a trainer YAML on a CPU or GPU, as the Model Zoo's trainer does.

The loop, the folder of a run, its records and resuming belong here. What is planned before the first step is in
`launch`, the mathematics of an update in `optimizer`.
"""
