"""What several systems share: data, training, likelihoods, priors, entropy coding, measures, pictures.

May import what the research wing may; knows no system.
"""
