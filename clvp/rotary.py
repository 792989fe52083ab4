"""Rotary position embedding (Su et al., RoFormer, 2021) as CLVP uses it: on part of a head, and on the values
too.

Angles are computed in float32 for every call and only their sine and cosine are cast. Positions of long
sequences are not distinguishable in bfloat16, and a cache would outlive a cast or a move of the model.

B batch, H heads, L length, R rotary dimensions, N head dimensions.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]  # cosine and sine, each [B or 1, 1, L, R]


def inverse_frequencies(dim: int) -> Tensor:
    """[dim / 2] float32 angles per position: 10000^(-2i / dim)."""
    return 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim))


def exact_frequencies(stored: Tensor) -> Tensor:
    """Float32 frequencies for those in a file: themselves, or computed anew where the file's are rounded."""
    return stored if stored.dtype == torch.float32 else inverse_frequencies(2 * len(stored))


class ClvpRotaryPositionalEmbedding(nn.Module):
    """Turns positions into rotations. Its frequencies are stored with the weights, always in float32."""

    inv_freq: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inverse_frequencies(dim))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves like any module, but does not lose precision when the model is cast."""
        exact = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != exact.dtype:
            self.inv_freq = exact.to(self.inv_freq.device)
        return self

    def forward(self, positions_BL: Tensor, dtype: torch.dtype) -> Rotation:
        """Cosine and sine in `dtype` for integer positions [B or 1, L]."""
        # Autocast would otherwise compute the product of positions and frequencies in half precision.
        with torch.autocast(positions_BL.device.type, enabled=False):
            angles_BLR = positions_BL[..., None].float() * self.inv_freq.float()
            angles_B1LR = torch.cat((angles_BLR, angles_BLR), dim=-1)[:, None]
            return angles_B1LR.cos().to(dtype), angles_B1LR.sin().to(dtype)


def rotate(x_BHLN: Tensor, rotation: Rotation) -> Tensor:
    """Turn the first R dimensions of every head; dimension i is paired with i + R / 2. The rest passes."""
    cos, sin = rotation
    dim = cos.shape[-1]
    turned, passed = x_BHLN[..., :dim], x_BHLN[..., dim:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, passed), dim=-1)
