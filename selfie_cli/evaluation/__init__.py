"""Measures of a network, from its vectors or its scores: kNN, linear probe, accuracies, collapse.

Its functions take only arrays and tensors: no files, no options.
"""
