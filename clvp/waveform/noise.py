"""Counter-based normal numbers: a function of (seed, row id, candidate, stream, step, frame, channel) alone.

A candidate meets the same noise alone or in a batch, whatever else was drawn before; a frame's noise depends
neither on how many frames there are nor on padding. See `clvp.sampling.noise` for the generator.

R rows, T frames, M channels.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from clvp.sampling.noise import candidate_keys, numbered_keys, uniform

_STREAMS = {"mel": 0, "vocoder": 1 << 32}  # number of the first step


def noise_keys(seed: int, candidates: Sequence[tuple[str, int]]) -> Tensor:
    """[R] int64 keys of (row id, candidate index), on the CPU; none is one of the token sampler's."""
    return torch.cat([candidate_keys(seed, row_id, [index], b"decode") for row_id, index in candidates])


def normal(
    keys_R: Tensor, stream: Literal["mel", "vocoder"], step: int | Tensor, frames: int, channels: int
) -> Tensor:
    """Standard normal numbers [R, T, M], float32, on the keys' device (Box and Muller 1958, in float64)."""
    step_1 = torch.as_tensor(step, device=keys_R.device) + _STREAMS[stream]
    keys_R1 = numbered_keys(keys_R, step_1)[:, None]
    element_E = torch.arange(frames * channels, device=keys_R.device)
    radius_RE = (-2 * uniform(keys_R1, 2 * element_E).log()).sqrt()
    angle_RE = 2 * math.pi * uniform(keys_R1, 2 * element_E + 1)
    return (radius_RE * angle_RE.cos()).float().unflatten(1, (frames, channels))
