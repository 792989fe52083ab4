"""How many words of a text are heard in its speech: error rates of what a recognizer writes down."""

import re
from typing import Any, ClassVar

import jiwer
import numpy as np
import onnxruntime

from clvp.quality import Value, at_16_khz, digest
from clvp.quality.moonshine import Moonshine, recognizer_files
from clvp.text.normalizers import tortoise_normalize

_SIGNS = {"%": " percent ", "&": " and ", "@": " at ", "+": " plus "}
_INITIALS = re.compile(r"\b([a-z])\.(?=[a-z]\b)")  # "p.m." and "U.S.A."
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared.

    Lower case and ASCII; numbers, amounts and abbreviated titles as words, by Tortoise's normalizer; `%&@+`
    as words; letters with periods between them as one word; then runs of letters, with apostrophes inside
    them. Spellings stay as they are: "colour" is not "color".
    """
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    return _WORD.findall(_INITIALS.sub(r"\1", tortoise_normalize(text)))


def error_rates(text: str, heard: str) -> dict[str, Value]:
    """Substituted, missing and added words per word of the text, characters likewise, and its words.

    The rates are None for a text without words.
    """
    wanted, found = words_of(text), words_of(heard)
    if not wanted:
        return {"words": 0, "wer": None, "cer": None}
    sentences = " ".join(wanted), " ".join(found)
    return {"words": len(wanted), "wer": jiwer.wer(*sentences), "cer": jiwer.cer(*sentences)}


class Transcribe:
    """What a recognizer hears, and its error rates against the text. `recognizer`: see `recognizer_files`."""

    columns: ClassVar = {"heard": str, "words": int, "wer": float, "cer": float}
    needs_reference = False
    files = staticmethod(recognizer_files)

    def __init__(self, recognizer: str | None = None) -> None:
        self.paths = recognizer_files(recognizer)
        self.listen = Moonshine(*self.paths)

    def __call__(self, waveform_N: np.ndarray, rate: int, text: str, _: np.ndarray) -> dict[str, Value]:
        heard = self.listen(at_16_khz(waveform_N, rate))
        return {"heard": heard, **error_rates(text, heard)}

    def facts(self) -> dict[str, Any]:
        digests = {path.name: digest(path) for path in self.paths}
        return {**digests, "onnxruntime": onnxruntime.__version__}
