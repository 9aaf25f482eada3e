"""The update of the weights: parameter groups, schedules, AdamW, precision and clipping, as in the Model Zoo 2.10.

What a single update needs belongs here. The loop over steps, data and checkpoints is in `train`.
"""
