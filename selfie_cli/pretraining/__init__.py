"""Settings, batches, steps and pace of pretraining on this machine.

`settings` chooses what does not depend on the machine, `task` measures on it. `pretrain` and `doctor` use both.
"""
