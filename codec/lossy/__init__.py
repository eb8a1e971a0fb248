"""Levels 1 to 3: the pyramid of DCT latents with learned priors, in integers; analysis in float.

May import `nets`, `entropy` and `vbc.kernels`; nothing of training.
"""
