"""The 24 kHz log-mels by which the diffusion decoder knows a voice.

They share nothing with the 22.05 kHz ones of `clvp.audio.mel` but a window and a hop: magnitudes, 100 bands
up to 12 kHz on Slaney's scale, and no norms. N samples, M mel bands, T frames.
"""

import math
from functools import lru_cache

from torch import Tensor
from torch.nn import functional
from torchaudio.functional import resample
from torchaudio.transforms import MelSpectrogram

from clvp.audio.mel import SAMPLING_RATE as CLIP_RATE
from clvp.sampling.invariance import thread_count
from clvp.waveform.vocoder import HOP, SAMPLING_RATE

NUM_MELS = 100
FLOOR = 1e-5
PIECE = 102_400  # samples of a clip that are heard: 4.27 seconds


@lru_cache(maxsize=1)
def _spectrogram() -> MelSpectrogram:
    """Float64: in float32, the rounding of a loud tone drowns quiet bands."""
    scale = {"n_mels": NUM_MELS, "f_max": SAMPLING_RATE / 2, "norm": "slaney", "mel_scale": "slaney"}
    return MelSpectrogram(SAMPLING_RATE, n_fft=1024, hop_length=HOP, power=1, **scale).double()


def log_mel(waveform_N: Tensor) -> Tensor:
    """[100, 1 + N // 256] float32 of a waveform at 24 kHz, as the vocoder takes it too."""
    return _spectrogram()(waveform_N.double()).clamp(min=FLOOR).log().float()


def clip_mels(waveform_N: Tensor, *, whole: bool = False) -> list[Tensor]:
    """The log-mels [100, 401] of a clip at 22.05 kHz: of its first 4.27 seconds, zero-padded if need be.

    With `whole`, of each 4.27 seconds that it fills, but for those of silence.

    Raises ValueError for a clip of silence, which is no voice.
    """
    with thread_count(1):  # so that bits do not depend on it
        samples_N = resample(waveform_N, CLIP_RATE, SAMPLING_RATE)
        pieces = samples_N.split(PIECE)[: max(len(samples_N) // PIECE, 1) if whole else 1]
        mels = [log_mel(functional.pad(piece, (0, PIECE - len(piece)))) for piece in pieces]
    heard = [mel_MT for mel_MT in mels if mel_MT.max() > math.log(FLOOR) + 1e-3]
    if not heard:
        raise ValueError(f"the clip is silent in its first {len(pieces) * PIECE / SAMPLING_RATE:.2f} seconds")
    return heard
