"""A run as one HTML page and as a model card.

It reads the files of a run and, where images are at hand, shows what the network makes of them. Templates are Jinja
files beside the code: `record` has the sections made of files, `examples` those that show images.
"""
