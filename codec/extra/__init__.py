"""What a file holds beside its levels: alpha, low bytes of 16-bit samples, graphics packed whole.

May import `entropy`; nothing of training.
"""
