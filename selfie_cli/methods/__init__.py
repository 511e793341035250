"""One file per pretraining method: how it draws its views, and its loss.

A method is a torch module whose `loss` gives the loss and the values to log. It knows nothing of files, runs or
the training loop.
"""
