"""From packets to the best picture there is, and from a picture to packets.

May import every room but `files` and `train`; `pipeline` alone imports it, with `api` and what is beside it.
"""
