"""Measurements, one runnable module per question: `python -m bench.<name>`."""
