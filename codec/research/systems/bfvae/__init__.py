"""BFVAE, the VAE of background and foreground with a code for each, and its studies.

One system in several files; may import what `codec.research.systems` may.
"""
