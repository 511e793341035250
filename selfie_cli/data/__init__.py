"""Images and labels, from what a user names to batches of pixels.

`layout` decides what lies in a folder, tar, parquet file or list, `images` decodes, `pixels` is the one interface to
decoded images, in memory or cached on disk, and `batches` makes the batch of each step. Images stay uint8 until the
method augments them.
"""
