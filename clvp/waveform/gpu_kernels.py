"""Attention and norms of the sampling steps on CUDA, as Triton kernels.

A program computes frames or channels of one row, in blocks of constant size as far as the row's own length,
which is read on the device: what it computes depends on no other row, and one CUDA graph serves all lengths
of a bucket. R rows, T frames, C width, H heads, N head dimensions, E features.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from clvp.waveform.denoiser import NORM_EPS, FrameNorm, Kernels, distance_bias

# Queries and keys at a time, warps, loads under way: the fastest of some on an H100.
_BLOCKS = {torch.bfloat16: (128, 32, 4, 3), torch.float32: (128, 64, 8, 2)}
_FRAMES = 256  # of a group of channels at a time


@triton.jit
def _attend_kernel(  # type: ignore[no-untyped-def]
    qkv,  # [R, T, H, 3, N]
    bias,  # [H, 2T − 1], by the distance key − query
    lengths,  # [R]
    out,  # [R, T, H, N]
    frames,
    scale,
    H: tl.constexpr,
    N: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row, head = tl.program_id(1) // H, tl.program_id(1) % H
    queries = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    columns = tl.arange(0, N)
    length = tl.load(lengths + row).to(tl.int32)
    limit = tl.where(tl.program_id(0) * QUERIES < length, length, 0)  # padding attends to nothing
    qkv += row.to(tl.int64) * frames * (3 * H * N) + head * (3 * N)
    q = tl.load(
        qkv + queries[:, None] * (3 * H * N) + columns[None, :], mask=queries[:, None] < frames, other=0.0
    )
    bias += head * (2 * frames - 1) + frames - 1
    peak = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    read = tl.zeros([QUERIES, N], tl.float32)
    for first in range(0, limit, KEYS):
        keys = first + tl.arange(0, KEYS)
        inside = keys < length
        key = tl.load(
            qkv + N + keys[None, :] * (3 * H * N) + columns[:, None], mask=inside[None, :], other=0.0
        )
        seen = inside[None, :] & (queries[:, None] < frames)
        added = tl.load(bias + keys[None, :] - queries[:, None], mask=seen, other=0.0)
        scores = tl.dot(q, key, input_precision=PRECISION) * scale + added
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        shrink = tl.exp2(peak - new_peak)
        shares = tl.exp2(scores - new_peak[:, None])
        value = tl.load(
            qkv + 2 * N + keys[:, None] * (3 * H * N) + columns[None, :], mask=inside[:, None], other=0.0
        )
        total = total * shrink + tl.sum(shares, axis=1)
        read = read * shrink[:, None] + tl.dot(shares.to(value.dtype), value, input_precision=PRECISION)
        peak = new_peak
    read /= tl.where(total > 0, total, 1.0)[:, None]
    here = out + row.to(tl.int64) * frames * (H * N) + head * N
    tl.store(
        here + queries[:, None] * (H * N) + columns[None, :],
        read.to(out.dtype.element_ty),
        mask=queries[:, None] < frames,
    )


def attend(qkv_RTE: Tensor, table_KH: Tensor, lengths_R: Tensor) -> Tensor:
    """[R, T, C] as `denoiser.attend_by_row`, but for frames behind a row's own, which mean nothing.

    Online softmax in float32 (Milakov and Gimelshein 2018; Dao et al., "FlashAttention", 2022). Products of
    float32 are made of three of TF32, which is as exact. The head dimension must be a power of two from
    16 on.
    """
    rows, frames, features = qkv_RTE.shape
    heads = table_KH.shape[1]
    head_dim = features // 3 // heads
    bias_HD = distance_bias(table_KH, head_dim, frames) * math.log2(math.e)
    out_RTC = torch.empty(rows, frames, features // 3, dtype=qkv_RTE.dtype, device=qkv_RTE.device)
    queries, keys, warps, stages = _BLOCKS[qkv_RTE.dtype]
    _attend_kernel[(-(-frames // queries), rows * heads)](
        qkv_RTE.contiguous(),
        bias_HD,
        lengths_R,
        out_RTC,
        frames,
        math.log2(math.e) / head_dim**0.5,
        H=heads,
        N=head_dim,
        QUERIES=queries,
        KEYS=keys,
        PRECISION="tf32x3",
        num_warps=warps,
        num_stages=stages,
    )
    return out_RTC


@triton.jit
def _normalise_kernel(  # type: ignore[no-untyped-def]
    x,  # [R, T, C]
    lengths,  # [R]
    weight,  # [C]
    bias,  # [C]
    modulation,  # [R or 1, 2C] scale and shift
    out,  # [R, T, C]
    frames,
    modulation_stride,  # 0: the same for all rows
    EPS: tl.constexpr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    MODULATED: tl.constexpr,
    SILU: tl.constexpr,
    FRAMES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, group = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + row).to(tl.int32)
    channels = group * CHANNELS + tl.arange(0, BLOCK)
    ours = tl.arange(0, BLOCK) < CHANNELS
    steps = tl.arange(0, FRAMES)
    x += row.to(tl.int64) * frames * C
    out += row.to(tl.int64) * frames * C
    places = steps[:, None] * C + channels[None, :]

    total = tl.zeros([FRAMES, BLOCK], tl.float32)
    for first in range(0, length, FRAMES):
        inside = ((first + steps) < length)[:, None] & ours[None, :]
        total += tl.load(x + first * C + places, mask=inside, other=0.0).to(tl.float32)
    count = length * CHANNELS
    mean = tl.sum(tl.sum(total, axis=0), axis=0) / count
    # A mean that is large beside the deviation is rounded by as much: what is left is taken off too.
    total, squares = tl.zeros([FRAMES, BLOCK], tl.float32), tl.zeros([FRAMES, BLOCK], tl.float32)
    for first in range(0, length, FRAMES):
        inside = ((first + steps) < length)[:, None] & ours[None, :]
        value = tl.load(x + first * C + places, mask=inside, other=0.0).to(tl.float32)
        centred = tl.where(inside, value - mean, 0.0)
        total += centred
        squares += centred * centred
    rest = tl.sum(tl.sum(total, axis=0), axis=0) / count
    variance = tl.sum(tl.sum(squares, axis=0), axis=0) / count - rest * rest

    scale = tl.load(weight + channels, mask=ours, other=0.0) / tl.sqrt(variance + EPS)
    shift = tl.load(bias + channels, mask=ours, other=0.0) - rest * scale
    if MODULATED:
        modulation += row * modulation_stride
        times = 1 + tl.load(modulation + channels, mask=ours, other=0.0)
        scale = scale * times
        shift = shift * times + tl.load(modulation + C + channels, mask=ours, other=0.0)
    for first in range(0, frames, FRAMES):
        inside = ((first + steps) < length)[:, None] & ours[None, :]
        value = tl.load(x + first * C + places, mask=inside, other=0.0).to(tl.float32)
        value = (value - mean) * scale[None, :] + shift[None, :]
        if SILU:
            value = value / (1 + tl.exp(-value))
        value = tl.where(inside, value, 0.0).to(out.dtype.element_ty)
        tl.store(out + first * C + places, value, mask=((first + steps) < frames)[:, None] & ours[None, :])


def normalise(
    norm: FrameNorm,
    x_RTC: Tensor,
    lengths_R: Tensor,
    dtype: torch.dtype,
    modulation_RE: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """[R, T, C] as `denoiser.normalise`."""
    rows, frames, width = x_RTC.shape
    channels = width // norm.groups
    out_RTC = torch.empty(rows, frames, width, dtype=dtype, device=x_RTC.device)
    modulated = modulation_RE is not None
    modulation_RE = norm.weight[None] if modulation_RE is None else modulation_RE
    _normalise_kernel[(rows, norm.groups)](
        x_RTC.contiguous(),
        lengths_R,
        norm.weight,
        norm.bias,
        modulation_RE,
        out_RTC,
        frames,
        modulation_RE.stride(0) if len(modulation_RE) > 1 else 0,
        EPS=NORM_EPS,
        C=width,
        CHANNELS=channels,
        MODULATED=modulated,
        SILU=silu,
        FRAMES=_FRAMES,
        BLOCK=triton.next_power_of_2(channels),
        num_warps=4,
    )
    return out_RTC


KERNELS = Kernels(attend, normalise)
