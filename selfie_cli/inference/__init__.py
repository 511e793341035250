"""Networks of finished runs, and their results for images.

The package rebuilds a run's network from its config and weights, streams files through it in input order, and reads and
writes files of vectors. It never trains.
"""
