"""The latent space renderer: a generator that shows sharply what a frozen VAE's code says, and its studies.

One system in several files; may import what `codec.research.systems` may.
"""
