"""Operations of the codec, one file each: public function, reference, launcher, checks, Triton kernel.

Nothing here knows the codec or its file format; the imports are torch and, where it is installed, triton.
"""
