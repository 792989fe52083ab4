"""Decode attention for CUDA as one Triton kernel: a lane reads its row's prefix and its own suffix alone.

One program per (lane, head) with blocks of constant size: what a lane computes depends on no other lane, and
the lengths are read on the device, so that one CUDA graph serves every step. The lanes of a row meet its
prefix in the L2 cache. Softmax is accumulated online in float32 (Milakov and Gimelshein 2018).

Shapes: W lanes, R prefix slots, H heads, P prefix room, S suffix room, N head dimensions.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64  # positions read at a time


@triton.jit
def _accumulate(  # type: ignore[no-untyped-def]
    q, keys, values, start, stop, peak, total, read, BLOCK: tl.constexpr, N: tl.constexpr
):
    """Takes positions [start, stop) of one head's keys and values, [·, N] each, into the running softmax."""
    columns = tl.arange(0, N)
    for first in range(start, stop, BLOCK):
        positions = first + tl.arange(0, BLOCK)
        inside = positions < stop
        offsets = positions[:, None] * N + columns[None, :]
        key = tl.load(keys + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        scores = tl.where(inside, tl.sum(key * q[None, :], axis=1), float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=0))
        shrink = tl.exp(peak - new_peak)
        shares = tl.exp(scores - new_peak)
        value = tl.load(values + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        total = total * shrink + tl.sum(shares, axis=0)
        read = read * shrink + tl.sum(shares[:, None] * value, axis=0)
        peak = new_peak
    return peak, total, read


@triton.jit
def _attend_kernel(  # type: ignore[no-untyped-def]
    qkv,  # [W, 3, H, N]
    prefix_keys,  # [R, H, P, N]
    prefix_values,
    suffix_keys,  # [W, H, S, N]
    suffix_values,
    slots,  # [W] prefix slot of each lane
    prefix_lengths,  # [W]
    steps,  # [W] positions in the suffix before this one
    active,  # [W]
    out,  # [W, H, N]
    H: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane, head = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, N)
    here = out + (lane * H + head) * N + columns
    if tl.load(active + lane) == 0:
        tl.store(here, tl.zeros([N], dtype=tl.float32).to(out.dtype.element_ty))
    else:
        step = tl.load(steps + lane).to(tl.int32)
        source = qkv + lane * 3 * H * N + head * N + columns
        q = tl.load(source).to(tl.float32)
        key, value = tl.load(source + H * N), tl.load(source + 2 * H * N)
        suffix = (lane.to(tl.int64) * H + head) * S * N
        tl.store(suffix_keys + suffix + step * N + columns, key)
        tl.store(suffix_values + suffix + step * N + columns, value)

        # The newest position starts the softmax; it comes from registers, not from the memory just written.
        peak = tl.sum(q * key.to(tl.float32), axis=0)
        total = tl.full([], 1.0, tl.float32)
        read = value.to(tl.float32)
        prefix = (tl.load(slots + lane).to(tl.int64) * H + head) * P * N
        length = tl.load(prefix_lengths + lane).to(tl.int32)
        peak, total, read = _accumulate(
            q, prefix_keys + prefix, prefix_values + prefix, 0, length, peak, total, read, BLOCK, N
        )
        peak, total, read = _accumulate(
            q, suffix_keys + suffix, suffix_values + suffix, 0, step, peak, total, read, BLOCK, N
        )
        tl.store(here, (read / total).to(out.dtype.element_ty))


def attend(
    qkv_WD: Tensor,
    prefix_keys_RHPN: Tensor,
    prefix_values_RHPN: Tensor,
    suffix_keys_WHSN: Tensor,
    suffix_values_WHSN: Tensor,
    slots_W: Tensor,
    prefix_lengths_W: Tensor,
    steps_W: Tensor,
    active_W: Tensor,
) -> Tensor:
    """Attention of every lane's newest position: [W, H·N], zeros for lanes that are not active.

    `qkv_WD` is [W, 3·H·N], queries scaled. The key and value are stored at `steps_W` of the suffix, of which
    lanes that are never active need none. The head dimension must be a power of two.
    """
    lanes, (_, heads, suffix_room, head_dim) = len(qkv_WD), suffix_keys_WHSN.shape
    out_WD = torch.empty(lanes, heads * head_dim, dtype=qkv_WD.dtype, device=qkv_WD.device)
    blocks = (prefix_keys_RHPN, prefix_values_RHPN, suffix_keys_WHSN, suffix_values_WHSN)
    state = (slots_W, prefix_lengths_W, steps_W, active_W)
    sizes = {"H": heads, "P": prefix_keys_RHPN.shape[2], "S": suffix_room, "N": head_dim, "BLOCK": BLOCK}
    _attend_kernel[(lanes, heads)](qkv_WD, *blocks, *state, out_WD, **sizes, num_warps=4)
    return out_WD
