"""Kernels that the codec does not use: for the models of the research wing (format files need none of them).

Masked convolution, logistic mixtures and the glimpse sampler, each with reference and tests.
"""
