"""The networks: ResNets, the patch network with attention pooling, classifiers, and their forms for inference.

Each file reads as its paper does, with a legend of shapes. No data, no training.
"""
