"""The networks of the speech codec: log-mels to codes and codes to log-mels.

Log-mels are those of `clvp.audio`, 86 frames a second. Encoder and decoder know a voice by the mean and the
deviation of each band in its reference clips: codes are left to say what the voice does not. Four frames make
a code, 21.5 a second. Convolutions alone, without norms: no clip takes part in the result of another.

B clips, T frames, L = T / 4 codes, Q channels of the quantizer, 8 stands for the mel bands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from clvp.codec.quantizer import FiniteScalarQuantizer
from clvp.config import ClvpConfigBase
from clvp.fields import Count

FRAMES_PER_CODE = 4
_LEAST_DEVIATION = 0.02


@dataclass(frozen=True)
class CodecConfig(ClvpConfigBase):
    """Sizes of the codec."""

    model_type: ClassVar[str] = "clvp_codec"

    num_mels: Count = 80
    levels: tuple[Count, ...] = (8, 8, 8, 4)  # their product is the number of codes
    hidden_sizes: tuple[Count, Count, Count] = (128, 192, 320)  # at the rates of frames, half and a quarter
    dilations: tuple[tuple[Count, ...], ...] = ((1, 3), (1,), (1, 2, 4, 1))  # of the encoder's blocks at each
    decoder_dilations: tuple[tuple[Count, ...], ...] = ((1, 3), (1,), (1, 2, 4, 8, 1, 2))


def voice_of(mels: Sequence[Tensor]) -> Tensor:
    """[2, 8] mean and deviation of each band over the frames of a voice's clips, [8, T] each.

    Frames that are at the floor in every band are padding.
    """
    frames = torch.cat(list(mels), dim=1)
    sounding = (frames > frames.amin(dim=1, keepdim=True)).any(dim=0)
    frames = frames[:, sounding] if sounding.sum() > 1 else frames
    return torch.stack((frames.mean(dim=1), frames.std(dim=1).clamp(min=_LEAST_DEVIATION)))


class Block(nn.Module):
    """x plus what two convolutions make of it; at first nothing."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.near = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)
        nn.init.zeros_(self.mix.weight)
        self.activation = nn.GELU(approximate="tanh")

    def forward(self, x_BDT: Tensor) -> Tensor:
        """Same shape."""
        return x_BDT + self.mix(self.activation(self.near(self.activation(x_BDT))))


def _blocks(width: int, dilations: Sequence[int]) -> list[nn.Module]:
    return [Block(width, dilation) for dilation in dilations]


class CodecEncoder(nn.Module):
    """Log-mels to codes."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        fast, half, slow = config.hidden_sizes
        of_fast, of_half, of_slow = config.dilations
        self.layers = nn.Sequential(
            nn.Conv1d(config.num_mels, fast, 3, padding=1),
            *_blocks(fast, of_fast),
            nn.Conv1d(fast, half, 4, stride=2, padding=1),
            *_blocks(half, of_half),
            nn.Conv1d(half, slow, 4, stride=2, padding=1),
            *_blocks(slow, of_slow),
            nn.Conv1d(slow, len(config.levels), 1),
        )
        self.quantizer = FiniteScalarQuantizer(config.levels)

    def forward(self, mel_B8T: Tensor, voice_B28: Tensor) -> Tensor:
        """Quantized values [B, L, Q] of whole fours of frames."""
        mean_B81, deviation_B81 = voice_B28.unsqueeze(-1).unbind(1)
        frames = mel_B8T.shape[2] // FRAMES_PER_CODE * FRAMES_PER_CODE
        x_BQL = self.layers((mel_B8T[:, :, :frames] - mean_B81) / deviation_B81)
        return self.quantizer(x_BQL.transpose(1, 2))

    def encode(self, mel_8T: Tensor, voice_28: Tensor) -> Tensor:
        """Codes [L] of one clip."""
        return self.quantizer.codes(self(mel_8T[None], voice_28[None]))[0]


class CodecDecoder(nn.Module):
    """Codes and a voice to log-mels."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        fast, half, slow = config.hidden_sizes
        of_fast, of_half, of_slow = config.decoder_dilations
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.of_codes = nn.Conv1d(len(config.levels), slow, 3, padding=1)
        self.of_voice = nn.Linear(2 * config.num_mels, slow)
        self.layers = nn.Sequential(
            *_blocks(slow, of_slow),
            nn.ConvTranspose1d(slow, half, 4, stride=2, padding=1),
            *_blocks(half, of_half),
            nn.ConvTranspose1d(half, fast, 4, stride=2, padding=1),
            *_blocks(fast, of_fast),
            nn.Conv1d(fast, config.num_mels, 3, padding=1),
        )

    def forward(self, values_BLQ: Tensor, voice_B28: Tensor) -> Tensor:
        """Log-mels [B, 8, 4 L] of quantized values."""
        mean_B81, deviation_B81 = voice_B28.unsqueeze(-1).unbind(1)
        x_BDL = self.of_codes(values_BLQ.transpose(1, 2))
        x_BDL = x_BDL + self.of_voice(voice_B28.flatten(1))[:, :, None]
        return self.layers(x_BDL).float() * deviation_B81 + mean_B81

    def decode(self, codes_L: Tensor, voice_28: Tensor) -> Tensor:
        """Log-mels [8, 4 L] of one clip's codes."""
        return self(self.quantizer.values(codes_L)[None], voice_28[None])[0]
