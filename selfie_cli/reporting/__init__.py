"""The HTML page and the model card of a run.

They are made from the run's files. If images are available, the page shows the network's output on them. Templates are
Jinja files beside the code: `record` has the sections made from files, `examples` those that show images.
"""
