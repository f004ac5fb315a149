"""Pre-training: a network of the SPP-net paper, from random weights, on folders of classes."""
