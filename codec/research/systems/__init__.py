"""The systems of the theses: one file a system, each with its `Study` objects.

A system imports `research.parts` and never another system.
"""
