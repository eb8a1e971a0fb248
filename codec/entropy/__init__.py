"""Coders behind one `code` call: writer, reader, counter, on the host and in tensors.

May import `vbc.bitstream` and `vbc.kernels`; nothing of the levels.
"""
