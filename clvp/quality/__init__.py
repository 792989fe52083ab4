"""What speech is measured by, with models that others trained: words, voice and naturalness of a waveform.

Reading order: this page, then `transcribe` with its recognizer `moonshine`, `similarity`, `naturalness`.
A measure of one's own is any class like theirs, named `module:Class`.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import soxr

NAMED = {
    "transcribe": "clvp.quality.transcribe:Transcribe",
    "similarity": "clvp.quality.similarity:Similarity",
    "naturalness": "clvp.quality.naturalness:Naturalness",
}
INSTALL = (
    "make measures, or pip install jiwer onnxruntime and pip install --no-deps Resemblyzer distillmos "
    "xls-r-sqa moonshine-voice"
)
RATE = 16_000  # that all models here hear at

Value = float | int | str | None


class Measure(Protocol):
    """A class whose instances are called with one waveform at a time. It is made once per process.

    It may also have `needs_reference = False`, `gpus`, the share of a GPU that it runs on, and `facts()`, a
    JSON object of what its numbers depend on: a run that goes on with other facts is refused.
    """

    columns: ClassVar[Mapping[str, type]]  # what it gives, by name: float, int or str

    def __call__(
        self, waveform_N: np.ndarray, rate: int, text: str, reference_N: np.ndarray
    ) -> Mapping[str, Value]:
        """A value of each column, None where there is none; both waveforms are float32, mono, of `rate` Hz.

        `reference_N` holds the clips of the voice one after the other, as far as they are used, and nothing
        where the voice is a random one or the class has `needs_reference = False`.
        """


def find_measure(name: str) -> Any:
    """The class that a name of `NAMED` or `module:Class` stands for.

    Raises ImportError or ValueError that says in one sentence what to do.
    """
    module, colon, attribute = NAMED.get(name, name).partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"there is no measure {name!r}: it is one of {', '.join(NAMED)} or MODULE:CLASS")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        hint = INSTALL if name in NAMED else "is its folder on PYTHONPATH, on every node?"
        raise ImportError(f"measure {name}: {error}; {hint}") from error
    kinds = getattr(found, "columns", None)
    if not isinstance(kinds, Mapping) or not kinds or not {*kinds.values()} <= {float, int, str}:
        raise ValueError(f"measure {name}: its attribute `columns` must map names to float, int or str")
    return found


def packaged(package: str, file: str) -> Path:
    """A file of an installed package, which is not imported. Raises FileNotFoundError saying what to do."""
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, file)).is_file():
            return path
    raise FileNotFoundError(f"the package {package} with its {file} is not installed: {INSTALL}")


@lru_cache(maxsize=32)
def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def at_16_khz(waveform_N: np.ndarray, rate: int) -> np.ndarray:
    """float32 [N * 16000 / rate]."""
    return np.asarray(soxr.resample(waveform_N, rate, RATE), np.float32)
