"""Colour spaces, interlaced grids, pictures as bytes.

May import `vbc.bitstream` errors alone.
"""
