"""How natural speech sounds: the mean opinion that DistillMOS predicts, from 1 to 5.

Stahl and Gamper, "Distillation and Pruning for Scalable Self-Supervised Representation-Based Speech Quality
Assessment" (2025); the package distillmos ships the weights.
"""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import distillmos
import numpy as np
import torch

from clvp.quality import Value, at_16_khz, digest, packaged
from clvp.sampling.invariance import thread_count


class Naturalness:
    """Callable on a waveform."""

    columns: ClassVar = {"naturalness": float}
    needs_reference = False

    @staticmethod
    def files() -> list[Path]:
        return [packaged("distillmos", "weights/distill_mos_v7.pt")]

    def __init__(self) -> None:
        with redirect_stdout(io.StringIO()):  # it tells where its weights are
            self.model = distillmos.ConvTransformerSQAModel().eval()

    @torch.inference_mode()
    def __call__(self, waveform_N: np.ndarray, rate: int, *_: Any) -> dict[str, Value]:
        with thread_count(1):  # the last bit depends on it
            opinion = self.model(torch.from_numpy(at_16_khz(waveform_N, rate))[None])
        return {"naturalness": round(float(opinion), 4)}

    def facts(self) -> dict[str, Any]:
        return {"weights": digest(self.files()[0]), "torch": torch.__version__}
