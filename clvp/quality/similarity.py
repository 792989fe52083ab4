"""How much one voice is like another: the cosine of their embeddings by a published speaker encoder.

The encoder is that of Wan et al., "Generalized End-to-End Loss for Speaker Verification" (2018), with the
weights in the package Resemblyzer; of the package only this file is read. Silences stay in, which Resemblyzer
would shorten.

N samples of 16 kHz, T frames of 10 ms, W windows of 1.6 s.
"""

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.transforms import MelSpectrogram

from clvp.quality import RATE, Value, at_16_khz, digest, packaged
from clvp.sampling.invariance import thread_count

BANDS, WIDTH, LAYERS = 40, 256, 3
HOP = 160  # samples of a frame
WINDOW, STEP = 160, 77  # frames: 1.3 windows a second
COVERED = 0.75  # share of the last window that must be speech
LEAST_RMS = 10 ** (-30 / 20)  # that softer speech is raised to


class Similarity:
    """Callable on a waveform and the clips of the voice that it should have."""

    columns: ClassVar = {"similarity": float}

    @staticmethod
    def files() -> list[Any]:
        return [packaged("resemblyzer", "pretrained.pt")]

    def __init__(self) -> None:
        scale = {"n_mels": BANDS, "norm": "slaney", "mel_scale": "slaney"}
        self.mel = MelSpectrogram(RATE, n_fft=400, hop_length=HOP, pad_mode="constant", **scale)
        self.network = nn.ModuleDict(
            {"lstm": nn.LSTM(BANDS, WIDTH, LAYERS, batch_first=True), "linear": nn.Linear(WIDTH, WIDTH)}
        )
        state = torch.load(self.files()[0], map_location="cpu", weights_only=True)["model_state"]
        self.network.load_state_dict({k: v for k, v in state.items() if not k.startswith("similarity")})

    def __call__(
        self, waveform_N: np.ndarray, rate: int, _: str, reference_N: np.ndarray
    ) -> dict[str, Value]:
        if not len(reference_N):
            return {"similarity": None}
        voices = [self.embed(at_16_khz(samples, rate)) for samples in (waveform_N, reference_N)]
        return {"similarity": round(float(voices[0] @ voices[1]), 4)}

    @torch.inference_mode()
    def embed(self, waveform_N: np.ndarray) -> Tensor:
        """The voice [256] of a waveform: the mean over its windows, of length 1."""
        frames = len(waveform_N) / HOP
        windows = max(1, math.ceil((int(frames) + 2 - WINDOW) / STEP) + 1)
        if windows > 1 and (frames - (windows - 1) * STEP) / WINDOW < COVERED:
            windows -= 1
        wave_N = torch.from_numpy(waveform_N)
        rms = float(wave_N.double().square().mean().sqrt()) if len(wave_N) else 0.0
        if 0 < rms < LEAST_RMS:
            wave_N = wave_N * (LEAST_RMS / rms)
        whole = ((windows - 1) * STEP + WINDOW) * HOP
        with thread_count(1):  # the last bit depends on it
            mel_TB = self.mel(functional.pad(wave_N, (0, max(whole - len(wave_N), 0)))).T
            _, (state_LWD, _) = self.network["lstm"](mel_TB.unfold(0, WINDOW, STEP)[:windows].transpose(1, 2))
            voices_WD = functional.normalize(self.network["linear"](state_LWD[-1]).relu(), dim=1)
        return functional.normalize(voices_WD.mean(0), dim=0)

    def facts(self) -> dict[str, Any]:
        return {"weights": digest(self.files()[0]), "torch": torch.__version__}
