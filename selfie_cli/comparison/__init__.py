"""The label-efficiency protocol that `finetune` and `curve` share.

It reads the labelled images, takes fractions of the labels, trains each arm with each seed, checks whether longer
training would help, and computes means, spreads and paired gains. Other packages decode images and define the training
step.
"""
