"""Spatial transformers in VAEs of digits: VAE, TVAE and DTVAE, priors over the pose, and the studies of them.

One system in several files; may import what `codec.research.systems` may.
"""
