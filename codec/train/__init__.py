"""Training: stages, losses, data, export to the weights file.

May import everything; nothing that decodes may import it.
"""
