"""One training loop for pretraining and finetuning, and the modules it needs.

Steps, schedules, optimizers, checkpoints, several processes, and the limits of this machine. The loop takes a step
function and a batch function and knows nothing of methods.
"""
