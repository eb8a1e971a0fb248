"""SAID: pictures as sequences of boxes through one small VAE, most informative first, stopped by description
length; before it the error maps and the glimpser without VAE.

One system in several files; may import what `codec.research.systems` may.
"""
