"""The ssVAE: a VAE of a picture and of coarser representations of it, and its studies.

`model.py` is the system, `modes.py` its ways of sampling, `representations.py` what y may be. Imports `parts`
and `systems/vae.py`.
"""
