"""Pretrain an image network on your own unlabelled pictures, finetune it on few labels, and see whether it helped."""

__version__ = "0.1.0"
