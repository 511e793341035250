"""What a pretraining is made with on this machine: settings from options and recipe, batches, steps, pace.

`settings` decides without the machine, `task` measures on it. `pretrain` and `doctor` use both.
"""
