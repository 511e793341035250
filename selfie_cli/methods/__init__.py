"""One file per method: how it draws its views, and its loss. `many_views` is the default Selfie, `selfie` the paper's.

A method is a torch module whose `loss` gives the loss and the values to log. It knows nothing of files, runs or
the training loop.
"""
