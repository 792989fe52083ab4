"""Finite scalar quantization (Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", 2023).

Each of a few channels is squeezed between two bounds and rounded to one of its levels; a code numbers the
combinations. There is no codebook that could collapse.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_MARGIN = 1e-3  # by which the bounds lie outside the last levels, so that those can be reached


class FiniteScalarQuantizer(nn.Module):
    """Vectors [..., Q] of `levels` to codes below their product, and back. It has no weights."""

    levels: Tensor
    places: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        places = [math.prod(levels[:index]) for index in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Values in [-1, 1] on the grid of levels; the gradient passes as if nothing was rounded."""
        half = (self.levels - 1) * (1 + _MARGIN) / 2
        offset = (self.levels % 2 == 0) / 2  # an even number of levels lies around no zero
        bounded = (x.float() + (offset / half).atanh()).tanh() * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self.levels // 2)

    def codes(self, values: Tensor) -> Tensor:
        """[...] int64 codes of quantized values [..., Q]."""
        half = self.levels // 2
        return ((values * half).round().long() + half).mul(self.places).sum(dim=-1)

    def values(self, codes: Tensor) -> Tensor:
        """Quantized values [..., Q] of codes."""
        half = self.levels // 2
        return (codes[..., None] // self.places % self.levels - half) / half
