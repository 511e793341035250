"""Images and labels, from what a user names to batches of pixels.

One room decides what lies in a folder, tar, parquet file or list (`layout`), one decodes (`images`), and a store gives
uint8 pixels from memory, disk or on the fly. Everything is uint8 until the method augments it.
"""
