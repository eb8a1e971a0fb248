"""Image files in and out, reading with limits, atomic writing.

Imports neither torch nor anything of the levels.
"""
