"""A renderer of the codec's own first levels, and its study.

One system in two files. Unlike other systems it may import the codec's lossy levels, which it is about.
"""
