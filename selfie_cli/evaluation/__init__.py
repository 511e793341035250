"""Measures of a network, from its vectors or its scores: kNN, linear probe, accuracies, collapse.

Functions of arrays and tensors alone: no files, no options.
"""
