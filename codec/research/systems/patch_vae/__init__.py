"""patch-VAE: codes of patches, the codes of whole images they are compared with, and the studies of both.

One system in several files; may import what `codec.research.systems` may.
"""
