"""A second decoder, written from docs/format.md alone with numpy and the standard library; slow and plain.

Imports nothing of vbc: what it and the codec agree on is what the text says.
"""
