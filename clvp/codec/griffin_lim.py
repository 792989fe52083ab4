"""Log-mels to sound without a model: the waveform whose spectrum comes nearest to them.

Griffin and Lim, "Signal estimation from modified short-time Fourier transform", 1984, with the momentum of
Perraudin et al., 2013. M mel bands, F frequency bins, T frames, N samples.
"""

from functools import lru_cache

import torch
from torch import Tensor

from clvp.audio.mel import SAMPLING_RATE, TORTOISE_MEL_NORMS, mel_filters

N_FFT, HOP = 1024, 256
_FLOOR, _CEILING = 1e-8, 10.0
_SPREADING_STEPS, _PHASE_STEPS, _MOMENTUM = 20, 32, 0.9


@lru_cache(maxsize=2)
def _filters(num_mels: int) -> tuple[Tensor, Tensor]:
    """Mel filters [M, F] and their pseudo-inverse [F, M], float32."""
    filters = mel_filters(SAMPLING_RATE, N_FFT, num_mels)
    return filters.float(), torch.linalg.pinv(filters).float()


def magnitudes(log_mel_MT: Tensor) -> Tensor:
    """[F, T] magnitudes whose mel bands have the power of a normalized log-mel, and none of them negative.

    The pseudo-inverse, then multiplicative updates (Lee and Seung, 2001).
    """
    filters_MF, inverse_FM = _filters(len(log_mel_MT))
    power_MT = (log_mel_MT * torch.tensor(TORTOISE_MEL_NORMS)[:, None]).exp()
    found_FT = (inverse_FM @ power_MT).clamp(min=_FLOOR)
    weight_F1 = filters_MF.sum(dim=0)[:, None].clamp(min=1e-4)
    for _ in range(_SPREADING_STEPS):
        ratio_MT = power_MT / (filters_MF @ found_FT).clamp(min=_FLOOR)
        found_FT = found_FT * ((filters_MF.T @ ratio_MT) / weight_F1).clamp(max=_CEILING)
    return found_FT.sqrt()


def griffin_lim(magnitude_FT: Tensor) -> Tensor:
    """The waveform [256 (T - 1)] of magnitudes; its first phases are always the same noise."""
    window = torch.hann_window(N_FFT)
    noise = torch.rand(magnitude_FT.shape, generator=torch.Generator().manual_seed(0))
    phase_FT, before_FT = torch.polar(torch.ones_like(noise), 2 * torch.pi * noise), torch.zeros(())
    for _ in range(_PHASE_STEPS):
        waveform_N = torch.istft(magnitude_FT * phase_FT, N_FFT, HOP, window=window)
        heard_FT = torch.stft(waveform_N, N_FFT, HOP, window=window, return_complex=True)
        ahead_FT = heard_FT - _MOMENTUM * before_FT
        phase_FT, before_FT = ahead_FT / (ahead_FT.abs() + _FLOOR), heard_FT
    return torch.istft(magnitude_FT * phase_FT, N_FFT, HOP, window=window)
