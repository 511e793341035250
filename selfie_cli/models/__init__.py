"""The networks: ResNets, the patch network with attention pooling, classifiers, and their forms for inference.

Each file follows its paper and has a legend of shapes. No data, no training.
"""
