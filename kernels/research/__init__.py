"""Kernels that the codec does not use: for the models of the research wing (format files need none of them).

Masked convolution, logistic mixtures and glimpses (affine, boxes, any points), each with reference and tests.
"""
