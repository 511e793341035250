"""Networks of finished runs, and images through them.

It rebuilds a run's network from its config and weights, streams files through it in input order, and reads and writes
files of vectors. It never trains.
"""
