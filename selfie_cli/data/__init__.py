"""Images and labels: from the paths that a user names to batches of pixels.

`layout` decides what a folder, tar, parquet file or list contains, `images` decodes, `pixels` is the one interface to
decoded images, in memory or cached on disk, and `batches` makes the batch of each step. Images stay uint8 until the
method augments them.
"""
