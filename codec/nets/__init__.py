"""Networks as the decoder runs them, in integers, and the layers they are trained with.

May import `vbc.kernels` alone.
"""
