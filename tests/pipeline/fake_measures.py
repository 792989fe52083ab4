"""Measures of the tests' own, named as a user's are: `tests.pipeline.fake_measures:Loudness`."""

from typing import Any, ClassVar

import numpy as np


class Loudness:
    """Numbers that differ from candidate to candidate, and what the measure was given."""

    columns: ClassVar = {"loud": float, "samples": int, "said": str, "clips_s": float}

    def __call__(
        self, waveform_N: np.ndarray, rate: int, text: str, reference_N: np.ndarray
    ) -> dict[str, Any]:
        assert waveform_N.dtype == reference_N.dtype == np.float32
        loud = float(np.abs(waveform_N).mean())
        return {"loud": loud, "samples": len(waveform_N), "said": text, "clips_s": len(reference_N) / rate}

    def facts(self) -> dict[str, Any]:
        return {"version": 1}


class Deaf:
    """Without a reference clip; nothing is heard where the waveform has an even number of samples."""

    columns: ClassVar = {"odd": float}
    needs_reference = False

    def __call__(
        self, waveform_N: np.ndarray, rate: int, text: str, reference_N: np.ndarray
    ) -> dict[str, Any]:
        assert not len(reference_N)
        return {"odd": float("nan")}


class OnGpu(Deaf):
    gpus = 0.2


class Failing:
    columns: ClassVar = {"x": float}

    def __call__(self, waveform_N: np.ndarray, *_: Any) -> dict[str, Any]:
        raise RuntimeError("no ears")


class Forgetful:
    columns: ClassVar = {"x": float, "y": float}

    def __call__(self, *_: Any) -> dict[str, Any]:
        return {"x": 1.0}


class Twice:
    columns: ClassVar = {"Loud": float}


class Wrong:
    columns: ClassVar = {"x": list}
