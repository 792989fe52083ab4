"""Counter-based random numbers: a function of (seed, row id, candidate, step) and of nothing else.

There is no generator state, so a candidate meets the same numbers alone or packed with others, on the first
try or after a restart. The mixing function is the finalizer of SplitMix64 (Steele, Lea and Flood 2014).
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

# Less 2^64: torch's integers have a sign.
_STRIDE = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # logical; torch shifts signed integers arithmetically


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MULTIPLIER_1
    z = (z ^ _shift_right(z, 27)) * _MULTIPLIER_2
    return z ^ _shift_right(z, 31)


def candidate_keys(seed: int, row_id: str, candidates: Sequence[int], purpose: bytes = b"") -> Tensor:
    """One 64-bit key per candidate: int64 [N], on the CPU. No two purposes share a key."""
    name = f"{seed}\0{row_id}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(name, digest_size=8, person=purpose).digest()
    row_key = int.from_bytes(digest, "little", signed=True)
    return _mix(torch.tensor(list(candidates), dtype=torch.int64) * _STRIDE + row_key)


def numbered_keys(keys_N: Tensor, numbers_N: Tensor) -> Tensor:
    """A 64-bit key for each number (int64, 0 and up) below a key: int64, of the shape both broadcast to."""
    return _mix(keys_N + (numbers_N + 1) * _STRIDE)


def uniform(keys_N: Tensor, steps_N: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), float64 [N], for the given decoding steps (int64, 0 for the first token)."""
    bits = _shift_right(numbered_keys(keys_N, steps_N), 12)
    return (bits.to(torch.float64) + 0.5) * 2.0**-52
