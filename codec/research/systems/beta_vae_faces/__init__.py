"""Beta-VAE on Frey faces: the network and its measures (`faces.py`), the sweep over beta (`study.py`).

May import what a system may, and no other system.
"""
