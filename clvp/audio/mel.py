"""Log-mel spectrograms as the conditioning encoder of Tortoise was trained on.

Shape suffixes: B clips, N samples, F frequency bins, T frames, M mel bands.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

SAMPLING_RATE = 22050
MIN_FREQUENCY, MAX_FREQUENCY = 0.0, 8000.0
POWER_FLOOR = 1e-5

# By these the log power of each band is divided: Tortoise's `mel_norms.pth`.
TORTOISE_MEL_NORMS: tuple[float, ...] = (
    *(-7.0095, -6.0832, -4.644, -3.3562, -2.4548, -2.0097, -1.6036, -1.8641, -2.3728, -2.3455),
    *(-2.5947, -2.6695, -2.7129, -2.8555, -3.0251, -3.0889, -3.4261, -3.6759, -4.078, -4.4624),
    *(-4.7812, -5.0075, -5.1284, -5.2717, -5.4006, -5.4993, -5.531, -5.5878, -5.6726, -5.7016),
    *(-5.7943, -5.8831, -5.9537, -5.9989, -6.0305, -6.0539, -6.0748, -6.1163, -6.1481, -6.2476),
    *(-6.3195, -6.4457, -6.5377, -6.611, -6.6481, -6.6671, -6.6539, -6.6499, -6.6794, -6.7833),
    *(-6.9307, -7.0818, -7.1894, -7.2439, -7.3168, -7.3779, -7.4491, -7.5233, -7.6224, -7.7473),
    *(-7.8994, -8.0604, -8.2181, -8.3998, -8.5556, -8.7161, -8.8481, -8.9582, -9.0371, -9.0867),
    *(-9.1546, -9.2038, -9.2334, -9.2292, -9.2304, -9.268, -9.3156, -9.3716, -9.4165, -9.4822),
)


def log_mel(
    waveforms_BN: Tensor,
    mel_norms: Sequence[float] | None = TORTOISE_MEL_NORMS,
    *,
    sampling_rate: int = SAMPLING_RATE,
    n_fft: int = 1024,
    hop_length: int = 256,
    num_mels: int = 80,
) -> Tensor:
    """Normalized log-mel spectrograms [B, M, T], float32, with T = 1 + N // hop_length, of waveforms [B, N].

    Periodic Hann window, centred frames with reflected edges, power, mel bands on the HTK scale with
    Slaney's area normalization, natural logarithm above a floor, division by `mel_norms`. Frame and band
    layout are those of the CLVP feature extractor of `transformers`.

    The spectrum is computed in float64: in float32, the rounding of a loud tone drowns quiet bands and
    costs up to 1e-2. Each clip is computed by itself, so that its result is the same in any batch.

    Raises ValueError for a waveform not longer than half a window (its edge cannot be reflected), and for
    norms that do not fit the number of bands.
    """
    if waveforms_BN.ndim != 2:
        raise ValueError(f"waveforms must have the shape [B, N], got {list(waveforms_BN.shape)}")
    if waveforms_BN.shape[1] <= n_fft // 2:
        raise ValueError(
            f"{waveforms_BN.shape[1]} samples are too few for a spectrogram, which takes {n_fft // 2 + 1}"
        )
    if mel_norms is not None and len(mel_norms) != num_mels:
        raise ValueError(f"{len(mel_norms)} mel norms for {num_mels} mel bands")
    device = waveforms_BN.device
    window = torch.hann_window(n_fft, dtype=torch.float64, device=device)
    filters_MF = mel_filters(sampling_rate, n_fft, num_mels).to(device)
    norms_M = torch.tensor(
        [1.0] * num_mels if mel_norms is None else mel_norms, dtype=torch.float64, device=device
    )
    shape = (len(waveforms_BN), num_mels, 1 + waveforms_BN.shape[1] // hop_length)
    mels_BMT = torch.empty(shape, dtype=torch.float32, device=device)
    for mel_MT, waveform_N in zip(mels_BMT, waveforms_BN.to(torch.float64), strict=True):
        spectrum_FT = torch.stft(waveform_N, n_fft, hop_length, window=window, return_complex=True)
        power_FT = spectrum_FT.real.square() + spectrum_FT.imag.square()
        mel_MT[:] = (filters_MF @ power_FT).clamp(min=POWER_FLOOR).log() / norms_M[:, None]
    return mels_BMT


@lru_cache(maxsize=4)
def mel_filters(sampling_rate: int, n_fft: int, num_mels: int) -> Tensor:
    """Triangular filters [M, F], float64 on the CPU: HTK mel scale from 0 to 8000 Hz, Slaney normalization.

    S. Young et al., "The HTK Book"; M. Slaney, "Auditory Toolbox" (each filter has the area of 1 Hz).
    """
    top = 2595.0 * math.log10(1.0 + MAX_FREQUENCY / 700.0)
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, top, num_mels + 2, dtype=torch.float64) / 2595.0) - 1.0)
    bins_F = torch.linspace(0.0, sampling_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    lower_M1, centre_M1, upper_M1 = (edges[i : i + num_mels, None] for i in range(3))
    rising_MF = (bins_F - lower_M1) / (centre_M1 - lower_M1)
    falling_MF = (upper_M1 - bins_F) / (upper_M1 - centre_M1)
    return torch.minimum(rising_MF, falling_MF).clamp(min=0.0) * 2.0 / (upper_M1 - lower_M1)
