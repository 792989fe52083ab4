"""Settles, before MKL computes anything, that it computes alike on every processor and in every company.

MKL picks its inner loops by processor, shape, alignment and threads, unless it is told otherwise before its
first call (it reads the variable then, not when it is loaded): in the strict mode a row of a product has the
same bits in every shape and with any number of threads, and the branch AVX2 makes products, Fourier
transforms and logarithms the same on all processors that have AVX2. Intel, oneMKL Developer Guide, "Obtaining
Numerically Reproducible Results".

Packed products (oneDNN) do not follow it; they are checked (`clvp.sampling.invariance`).
"""

import os

os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
