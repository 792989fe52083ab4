"""UnivNet: log-mels at 24 kHz to a waveform (Jang et al., "UnivNet", 2021; the small one, c32).

Noise is stretched to the length of the waveform, and each frame of the mel says by which kernels its samples
are convolved. A clip is computed alone, so that no other takes part in any kernel.

M mel bands, Z noise channels, T frames, N samples, C channels, H samples of a frame within a block.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.config import ClvpConfigBase

SAMPLING_RATE = 24000
HOP = 256
# What follows the mel so that its end does not sound like one: frames of silence, whose samples are dropped.
SILENT_FRAMES = 10
SILENCE = -11.5129
SLOPE = 0.2


@dataclass(frozen=True)
class VocoderConfig(ClvpConfigBase):
    """Sizes of the vocoder; the defaults are the published ones."""

    model_type: ClassVar[str] = "univnet"

    num_mels: int = 100
    noise_channels: int = 64
    hidden_channels: int = 32
    predictor_channels: int = 64
    strides: tuple[int, ...] = (8, 8, 4)  # samples that each block makes of one
    dilations: tuple[int, ...] = (1, 3, 9, 27)  # of the layers of each block

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", tuple(self.strides))
        object.__setattr__(self, "dilations", tuple(self.dilations))
        if math.prod(self.strides) != HOP:
            raise ValueError(
                f"strides {list(self.strides)} make {math.prod(self.strides)} samples of a frame, not {HOP}"
            )


def _conv(inputs: int, outputs: int, width: int, dilation: int = 1) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, width, padding=dilation * (width // 2), dilation=dilation)


class KernelPredictor(nn.Module):
    """The mel to the kernels [T, 2C, 3C] and biases [T, 2C] of each layer of a block."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        width, outputs = config.predictor_channels, len(config.dilations) * 2 * config.hidden_channels
        self.channels = config.hidden_channels
        self.input_conv = nn.Sequential(_conv(config.num_mels, width, 5), nn.LeakyReLU(SLOPE))
        self.residual_convs = nn.ModuleList(
            # Without dropout, which stands first, the convolutions keep their places.
            nn.Sequential(
                nn.Identity(),
                _conv(width, width, 3),
                nn.LeakyReLU(SLOPE),
                _conv(width, width, 3),
                nn.LeakyReLU(SLOPE),
            )
            for _ in range(3)
        )
        self.kernel_conv = _conv(width, outputs * config.hidden_channels * 3, 3)
        self.bias_conv = _conv(width, outputs, 3)

    def forward(self, mel_MT: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """One layer at a time: the kernels of all would take 92 MB for ten seconds, in each block."""
        c_DT = self.input_conv(mel_MT)
        for convs in self.residual_convs:
            c_DT = c_DT + convs(c_DT)
        biases_LET = self.bias_conv(c_DT).unflatten(0, (-1, 2 * self.channels))
        # The convolution as a product of frames with their neighbours leaves a frame's kernels together.
        windows_TK = functional.pad(c_DT, (1, 1)).unfold(1, 3, 1).transpose(0, 1).flatten(1)
        order = (-1, self.channels, 2 * self.channels, 3)
        weights = self.kernel_conv.weight.flatten(1).unflatten(0, order).transpose(1, 2)
        biases = self.kernel_conv.get_parameter("bias").unflatten(0, order).transpose(1, 2)
        for weight, bias, bias_ET in zip(weights, biases, biases_LET, strict=True):
            kernels = functional.linear(windows_TK, weight.flatten(0, 2), bias.flatten())
            yield kernels.view(len(kernels), 2 * self.channels, -1), bias_ET.T


class ResidualBlock(nn.Module):
    """Stretches the signal, then convolves each frame's samples with that frame's kernels."""

    def __init__(self, config: VocoderConfig, stride: int) -> None:
        super().__init__()
        width = config.hidden_channels
        self.kernel_predictor = KernelPredictor(config)
        self.convt_pre = nn.Sequential(
            nn.LeakyReLU(SLOPE), nn.ConvTranspose1d(width, width, 2 * stride, stride, padding=stride // 2)
        )
        self.conv_blocks = nn.ModuleList(
            nn.Sequential(nn.LeakyReLU(SLOPE), _conv(width, width, 3, dilation), nn.LeakyReLU(SLOPE))
            for dilation in config.dilations
        )

    def forward(self, x_CN: Tensor, mel_MT: Tensor) -> Tensor:
        """[C, N * stride]."""
        x_CN = self.convt_pre(x_CN)
        hop = x_CN.shape[1] // mel_MT.shape[1]
        for conv, (kernels_TEK, bias_TE) in zip(self.conv_blocks, self.kernel_predictor(mel_MT), strict=True):
            windows_CTH3 = functional.pad(conv(x_CN), (1, 1)).unfold(1, hop + 2, hop).unfold(2, 3, 1)
            windows_TKH = windows_CTH3.permute(1, 0, 3, 2).flatten(1, 2)
            signal_TCH, gate_TCH = torch.baddbmm(bias_TE[..., None], kernels_TEK, windows_TKH).chunk(2, dim=1)
            x_CN = x_CN + (signal_TCH.sigmoid() * gate_TCH.tanh()).transpose(0, 1).flatten(1)
        return x_CN


class UnivNet(nn.Module):
    """The vocoder, under the names of `vocoder.pth` without weight norm."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_channels
        self.res_stack = nn.ModuleList(ResidualBlock(config, stride) for stride in config.strides)
        self.conv_pre = nn.Conv1d(config.noise_channels, width, 7, padding=3, padding_mode="reflect")
        self.conv_post = nn.Sequential(
            nn.LeakyReLU(SLOPE), nn.Conv1d(width, 1, 7, padding=3, padding_mode="reflect"), nn.Tanh()
        )

    def forward(self, mel_MT: Tensor, noise_ZT: Tensor) -> Tensor:
        """Samples [256 * T] of a log-mel, from standard normal noise of as many frames."""
        # On a GPU, convolutions would else be rounded to ten bits, and may add up in any order.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            x_CN = self.conv_pre(noise_ZT)
            for block in self.res_stack:
                x_CN = block(x_CN, mel_MT)
            return self.conv_post(x_CN)[0]

    def synthesize(self, mel_MT: Tensor, noise_ZT: Tensor) -> Tensor:
        """The waveform [256 * T] in [-1, 1] of a log-mel, from noise of `SILENT_FRAMES` more frames."""
        padded_MT = functional.pad(mel_MT, (0, SILENT_FRAMES), value=SILENCE)
        return self(padded_MT, noise_ZT)[: -SILENT_FRAMES * HOP]
