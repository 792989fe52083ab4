"""What a waveform is measured by, and the two changes to it that may be asked for.

N samples, of 24 kHz.
"""

import math

import torch
from torch import Tensor
from torchaudio.functional import loudness

from clvp.waveform.vocoder import SAMPLING_RATE

GATE_SECONDS = 0.4  # the shortest waveform that has a loudness
FADE_SECONDS = 0.005


def measures_of(waveform_N: Tensor) -> dict[str, float]:
    """Of one waveform within ±1: `duration_s`, `peak` (the largest sample, whatever its sign), `rms_dbfs`
    (of a full-scale square wave 0, of silence minus infinity) and `clipped_share`, of samples at full scale.

    Raises ValueError for a waveform without samples.
    """
    if not len(waveform_N):
        raise ValueError("the waveform has no samples to be measured")
    size_N = waveform_N.double().abs()
    power = float(size_N.square().mean())
    return {
        "duration_s": len(waveform_N) / SAMPLING_RATE,
        "peak": float(size_N.max()),
        "rms_dbfs": 10 * math.log10(power) if power else -math.inf,
        "clipped_share": float((size_N >= 1).double().mean()),
    }


def to_loudness(waveform_N: Tensor, lufs: float) -> Tensor:
    """A waveform of this integrated loudness (ITU-R BS.1770-4), or as near to it as keeps its peak within ±1.

    One that is shorter than 0.4 s or silent has no loudness, and stays as it is.
    """
    if len(waveform_N) < GATE_SECONDS * SAMPLING_RATE:
        return waveform_N
    measured = float(loudness(waveform_N[None], SAMPLING_RATE))
    if not math.isfinite(measured):
        return waveform_N
    return waveform_N * min(10 ** ((lufs - measured) / 20), 1 / float(waveform_N.abs().max()))


def fade_out(waveform_N: Tensor) -> Tensor:
    """A waveform whose last 5 ms fall to zero, against the click that a border of the vocoder makes."""
    length = min(round(FADE_SECONDS * SAMPLING_RATE), len(waveform_N))
    faded_N = waveform_N.clone()
    faded_N[len(waveform_N) - length :] *= torch.linspace(1, 0, length)
    return faded_N
