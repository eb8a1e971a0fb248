"""Levels 4 and up: the exact picture over interlaced grids, in integers.

May import `nets`, `entropy` and `vbc.kernels`; nothing of training.
"""
