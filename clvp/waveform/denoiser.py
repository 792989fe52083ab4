"""Tortoise's diffusion decoder: speech latents and a voice to the noise in a mel spectrogram.

Everything is computed on frames [R, T, C], so that each convolution is one matrix product. Rows of unlike
length stand in one batch: group norms and attention see the first `lengths_R` frames of a row, convolutions
meet zeros behind them, and a row's frames come out as they do alone.

Names of weights are those of `diffusion_decoder.pth` (Betker, "Better speech synthesis through scaling",
2023). Weights of products may be bfloat16; norms, softmax and everything that is added up stay float32.

R rows, T frames, L latents, C width, E features, G groups, M mel bands, H heads, N head dimensions,
S sampling steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.conditioning import groupnorm_groups
from clvp.config import ClvpConfigBase
from clvp.layers import ActivationLayer, activation_function

# How many blocks there are; only the number of `layers` differs between models.
EMBEDDER_BLOCKS, CONDITIONER_BLOCKS, INTEGRATOR_LAYERS, LAST_BLOCKS = 5, 4, 3, 3
NORM_EPS = 1e-5
BUCKETS = 32  # of relative positions, half of them for later ones
EXACT_DISTANCES, FARTHEST_DISTANCE = 8, 64


@dataclass(frozen=True)
class DiffusionConfig(ClvpConfigBase):
    """Sizes of the diffusion decoder; the defaults are the published ones."""

    model_type: ClassVar[str] = "tortoise_diffusion"

    num_mels: int = 100
    hidden_size: int = 1024
    latent_size: int = 1024  # of the speech latents: width of the model that makes them
    num_layers: int = 10
    num_heads: int = 16

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")
        groupnorm_groups(self.hidden_size)


# ---- products, norms and attention on frames ----


class FrameConv(nn.Conv1d):
    """A convolution of frames with as many zeros on either side as its kernel reaches beyond."""

    def __init__(self, inputs: int, outputs: int, taps: int = 1, stride: int = 1) -> None:
        super().__init__(inputs, outputs, taps, stride)

    def forward(self, input: Tensor) -> Tensor:
        """[R, T, E] to [R, T / stride, C], as one product in the weight's dtype."""
        taps, input = self.kernel_size[0], input.to(self.weight.dtype)
        if taps > 1:
            padded = functional.pad(input, (0, 0, taps // 2, taps // 2))
            input = padded.unfold(1, taps, self.stride[0]).flatten(2)
        return functional.linear(input, self.weight.flatten(1), self.bias)


class FrameNorm(nn.Module):
    """Group norm over the frames that a mask shows, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.groups = groupnorm_groups(width)
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_RTC: Tensor, mask_RT: Tensor) -> Tensor:
        """Same shape, float32; behind the mask it is no number that means anything."""
        x_RTC, mask_RT1 = x_RTC.float(), mask_RT[:, :, None]
        channels = x_RTC.shape[2] // self.groups
        count_R11 = mask_RT1.sum(dim=1, keepdim=True) * channels

        def mean_of(masked_RTC: Tensor) -> Tensor:
            sums_R1C = masked_RTC.sum(dim=1, keepdim=True)  # pairwise: a product would add frame by frame
            return sums_R1C.unflatten(2, (self.groups, channels)).sum(dim=3) / count_R11

        def per_channel(values_R1G: Tensor) -> Tensor:
            return values_R1G[..., None].expand(-1, -1, -1, channels).flatten(2)

        # A mean that is large beside the deviation is rounded by as much: what is left is taken off too.
        centred_RTC = (x_RTC - per_channel(mean_of(x_RTC * mask_RT1))) * mask_RT1
        rest_R1G = mean_of(centred_RTC)
        variance_R1G = mean_of(centred_RTC.square()) - rest_R1G.square()
        scale_R1C = per_channel((variance_R1G + NORM_EPS).rsqrt()) * self.weight
        return torch.addcmul(self.bias - per_channel(rest_R1G) * scale_R1C, centred_RTC, scale_R1C)


def normalise(
    norm: FrameNorm,
    x_RTC: Tensor,
    lengths_R: Tensor,
    dtype: torch.dtype,
    modulation_RE: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """[R, T, C] in `dtype`: normed, scaled and shifted by [R or 1, 2C], through SiLU; zeros behind rows."""
    mask_RT = frame_mask(lengths_R, x_RTC.shape[1])
    x_RTC = norm(x_RTC, mask_RT)
    if modulation_RE is not None:
        scale_R1C, shift_R1C = modulation_RE[:, None].chunk(2, dim=2)
        x_RTC = torch.addcmul(shift_R1C, x_RTC, 1 + scale_R1C)
    if silu:
        x_RTC = activation_function("silu")(x_RTC)
    return (x_RTC * mask_RT[:, :, None]).to(dtype)


def distance_bias(table_KH: Tensor, head_dim: int, frames: int) -> Tensor:
    """[H, 2T − 1] what is added to a score by the distance key − query, from 1 − T on.

    A bucket for each of the first distances, then ever wider ones (Raffel et al., T5, 2020). The root of the
    head dimension belongs to the bias alone: the products are divided by it.
    """
    half, top = BUCKETS // 2, FARTHEST_DISTANCE / EXACT_DISTANCES
    distance_D = torch.arange(1 - frames, frames, device=table_KH.device)
    away_D = distance_D.abs()
    steps_D = (away_D.clamp(min=1) / EXACT_DISTANCES).log() / math.log(top) * (half - EXACT_DISTANCES)
    far_D = (EXACT_DISTANCES + steps_D.long()).clamp(max=half - 1)
    bucket_D = torch.where(away_D < EXACT_DISTANCES, away_D, far_D) + half * (distance_D > 0)
    return (table_KH.float() * head_dim**0.5)[bucket_D].t().contiguous()


def attend_by_row(qkv_RTE: Tensor, table_KH: Tensor, lengths_R: Tensor) -> Tensor:
    """Attention of each row's own frames, row by row; zeros behind them.

    Queries go in last frame first: then the bias at [i, j] is that of the distance i + j, and a view of
    2T − 1 numbers per head stands for T² of them.
    """
    heads = table_KH.shape[1]
    attended_RTC = qkv_RTE.new_zeros(*qkv_RTE.shape[:2], qkv_RTE.shape[2] // 3)
    for row, length in enumerate(lengths_R.tolist()):
        q, k, v = qkv_RTE[row, :length].unflatten(1, (heads, 3, -1)).permute(2, 1, 0, 3)[:, None]
        bias_HD = distance_bias(table_KH, q.shape[3], length)
        bias_1HTT = bias_HD.unfold(1, length, 1)[None]
        attended_1HTN = functional.scaled_dot_product_attention(q.flip(2), k, v, bias_1HTT).flip(2)
        attended_RTC[row, :length] = attended_1HTN[0].transpose(0, 1).flatten(1)
    return attended_RTC


def frame_mask(lengths_R: Tensor, frames: int) -> Tensor:
    """[R, T] float32: one at a row's own frames."""
    return (torch.arange(frames, device=lengths_R.device) < lengths_R[:, None]).float()


@dataclass(frozen=True)
class Kernels:
    """How the sampling steps compute what is no product; `gpu_kernels` has others."""

    # Queries, keys and values [R, T, 3C], the table [BUCKETS, H], lengths [R] to attended values [R, T, C].
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = attend_by_row
    normalise: Callable[..., Tensor] = normalise


PLAIN = Kernels()


# ---- blocks ----


class AttentionBlock(nn.Module):
    """Group norm, self-attention with relative positions, and what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = FrameNorm(width)
        self.qkv = FrameConv(width, 3 * width)  # channels run over heads, then q, k and v
        self.proj_out = FrameConv(width, width)
        self.relative_pos_embeddings = nn.ModuleDict(
            {"relative_attention_bias": nn.Embedding(BUCKETS, heads)}
        )

    def forward(self, x_RTC: Tensor, lengths_R: Tensor, kernels: Kernels) -> Tensor:
        """[R, T, C], float32."""
        table_KH: Any = self.relative_pos_embeddings["relative_attention_bias"].weight
        qkv_RTE = self.qkv(kernels.normalise(self.norm, x_RTC, lengths_R, self.qkv.weight.dtype))
        return x_RTC + self.proj_out(kernels.attend(qkv_RTE, table_KH, lengths_R))


class ResidualBlock(nn.Module):
    """Two convolutions, scaled and shifted between them by the time, and what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(FrameNorm(width), nn.SiLU(), FrameConv(width, width))
        self.emb_layers = nn.Sequential(ActivationLayer("silu"), nn.Linear(width, 2 * width))
        self.out_layers = nn.Sequential(
            FrameNorm(width), nn.SiLU(), nn.Dropout(0.0), FrameConv(width, width, 3)
        )

    def forward(self, x_RTC: Tensor, modulation_RE: Tensor, lengths_R: Tensor, kernels: Kernels) -> Tensor:
        """[R, T, C], float32. The scale and shift of each row, or of all, are the time's: [R or 1, 2C]."""
        norm_in, _, conv_in = self.in_layers
        norm_out, _, _, conv_out = self.out_layers
        dtype = conv_in.weight.dtype
        h_RTC = conv_in(kernels.normalise(norm_in, x_RTC, lengths_R, dtype, silu=True))
        h_RTC = kernels.normalise(norm_out, h_RTC, lengths_R, dtype, modulation_RE, silu=True)
        return x_RTC + conv_out(h_RTC)


class DiffusionLayer(nn.Module):
    """A residual block and an attention block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.resblk = ResidualBlock(width)
        self.attn = AttentionBlock(width, heads)

    def forward(self, x_RTC: Tensor, modulation_RE: Tensor, lengths_R: Tensor, kernels: Kernels) -> Tensor:
        """[R, T, C], float32."""
        x_RTC = self.resblk(x_RTC, modulation_RE, lengths_R, kernels)
        return self.attn(x_RTC, lengths_R, kernels)


# ---- the whole ----


class DiffusionDecoder(nn.Module):
    """Its parts in the order of their use: `voice_latent`, `align`, `modulate`, `condition`, `denoise`.

    All but `denoise` can be computed before the first sampling step, and the first two once per voice and
    once per candidate. `kernels` compute the sampling steps.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.kernels = PLAIN
        width, heads, mels = config.hidden_size, config.num_heads, config.num_mels
        self.unconditioned_embedding = nn.Parameter(torch.zeros(1, width, 1))
        self.inp_block = FrameConv(mels, width, 3)
        self.time_embed = nn.Sequential(
            nn.Linear(width, width), ActivationLayer("silu"), nn.Linear(width, width)
        )
        self.code_norm = FrameNorm(width)
        self.latent_conditioner = nn.Sequential(
            FrameConv(config.latent_size, width, 3),
            *(AttentionBlock(width, heads) for _ in range(CONDITIONER_BLOCKS)),
        )
        self.contextual_embedder = nn.Sequential(
            FrameConv(mels, width, 3, 2),
            FrameConv(width, 2 * width, 3, 2),
            *(AttentionBlock(2 * width, heads) for _ in range(EMBEDDER_BLOCKS)),
        )
        self.conditioning_timestep_integrator = nn.ModuleList(
            DiffusionLayer(width, heads) for _ in range(INTEGRATOR_LAYERS)
        )
        self.integrating_conv = FrameConv(2 * width, width)
        self.layers = nn.ModuleList(
            [
                *(DiffusionLayer(width, heads) for _ in range(config.num_layers)),
                *(ResidualBlock(width) for _ in range(LAST_BLOCKS)),
            ]
        )
        self.out = nn.Sequential(FrameNorm(width), nn.SiLU(), FrameConv(width, 2 * mels, 3))

    def cast_products(self, dtype: torch.dtype) -> None:
        """Casts the weights of the products of the sampling steps, in place."""
        parts = (self.inp_block, self.conditioning_timestep_integrator, self.integrating_conv)
        for part in (*parts, self.layers, self.out):
            for layer in part.modules():
                if isinstance(layer, FrameConv):
                    layer.to(dtype)

    def voice_latent(self, mels: Sequence[Tensor]) -> Tensor:
        """Conditioning latent [2C] of a voice from the 24 kHz log-mels [M, frames] of its clips.

        The mean over all frames of all clips, each of which is computed alone.
        """
        if not len(mels):
            raise ValueError("a voice needs at least one clip")
        encoded = []
        for mel_MT in mels:
            if mel_MT.dim() != 2 or len(mel_MT) != self.config.num_mels or not mel_MT.shape[1]:
                raise ValueError(
                    f"a clip's log-mels must be [{self.config.num_mels}, frames], not {list(mel_MT.shape)}"
                )
            x_1TC = mel_MT.t()[None].to(self.unconditioned_embedding)
            encoded.append(self._encode(x_1TC, self.contextual_embedder, convolutions=2)[0])
        return torch.cat(encoded).mean(dim=0)

    def align(self, latents_LE: Tensor, voice_E: Tensor) -> Tensor:
        """What a candidate's frames are conditioned on, [T, C], from its speech latents and the voice."""
        x_1LC = self._encode(latents_LE[None], self.latent_conditioner, convolutions=1)
        scale_C, shift_C = voice_E.chunk(2)
        x_1LC = self.code_norm(x_1LC, x_1LC.new_ones(x_1LC.shape[:2])) * (1 + scale_C) + shift_C
        frames = frames_of(len(latents_LE))
        return x_1LC[0, torch.arange(frames, device=x_1LC.device) * len(latents_LE) // frames]

    def modulate(self, times_S: Tensor) -> Tensor:
        """[S, blocks, 2C] scale and shift of all residual blocks in their order at trained steps 0 … 3999."""
        half = self.config.hidden_size // 2
        frequencies = torch.exp(
            torch.arange(half, dtype=torch.float32, device=times_S.device) * (-math.log(10000) / half)
        )
        angles = times_S.float()[:, None] * frequencies
        time_SC = self.time_embed(torch.cat((angles.cos(), angles.sin()), dim=1))
        blocks = [block for block in self.modules() if isinstance(block, ResidualBlock)]
        return torch.stack([block.emb_layers(time_SC) for block in blocks], dim=1)

    def condition(self, aligned_RTC: Tensor, modulation_RKE: Tensor, lengths_R: Tensor) -> Tensor:
        """[R, T, C] what the condition gives to each frame at a time step, before x is seen.

        The integrator, and its half of `integrating_conv`. `modulation_RKE` is a step's of `modulate`, or
        one of each row.
        """
        for number, layer in enumerate(self.conditioning_timestep_integrator):
            aligned_RTC = layer(aligned_RTC, modulation_RKE[:, number], lengths_R, self.kernels)
        weight = self.integrating_conv.weight[:, self.config.hidden_size :, 0]
        return functional.linear(aligned_RTC.to(weight.dtype), weight, self.integrating_conv.bias)

    def denoise(
        self, x_RTM: Tensor, condition_RTC: Tensor, modulation_RKE: Tensor, lengths_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The noise in x and its variance, [R, T, M] each, in float32, at the condition's time step."""
        mask_RT = frame_mask(lengths_R, x_RTM.shape[1])
        weight = self.integrating_conv.weight[:, : self.config.hidden_size, 0]
        h_RTC = functional.linear(self.inp_block(x_RTM * mask_RT[:, :, None]), weight)
        h_RTC = h_RTC.float() + condition_RTC
        for number, layer in enumerate(self.layers, start=INTEGRATOR_LAYERS):
            h_RTC = layer(h_RTC, modulation_RKE[:, number], lengths_R, self.kernels)
        norm_out, _, conv_out = self.out
        h_RTC = self.kernels.normalise(norm_out, h_RTC, lengths_R, conv_out.weight.dtype, silu=True)
        noise_RTM, variance_RTM = conv_out(h_RTC).float().chunk(2, dim=2)
        return noise_RTM, variance_RTM

    def unconditioned(self, rows: int, frames: int) -> Tensor:
        """[R, T, C] what stands for `align` where no condition is given."""
        return self.unconditioned_embedding.transpose(1, 2).expand(rows, frames, -1)

    def _encode(self, x_1TE: Tensor, stack: nn.Sequential, convolutions: int) -> Tensor:
        """[1, T, C] of one clip or candidate alone: convolutions, then attention blocks."""
        for layer in stack[:convolutions].children():
            x_1TE = layer(x_1TE).float()
        lengths_1 = torch.tensor([x_1TE.shape[1]], device=x_1TE.device)
        for block in stack[convolutions:].children():
            x_1TE = block(x_1TE, lengths_1, PLAIN)
        return x_1TE


def frames_of(latents: int) -> int:
    """Frames of 24 kHz (hop 256) that so many latents of 22.05 kHz (hop 1024) last."""
    return latents * 4 * 24000 // 22050
