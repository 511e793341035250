"""Settings, batches, steps and pace of a pretraining on this machine.

`settings` decides without the machine, `task` measures on it. `pretrain` and `doctor` use both.
"""
