"""Free speech engines of Debian: a text to a waveform and to the times at which its words end.

Packages: festival, festvox-us-slt-hts, libflite1. Their licences stand in LICENSES.md.
"""

import ctypes
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_short, c_void_p
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

_WORD_END = b"R:SylStructure.daughtern.daughtern.R:Segment.end"


class Spoken(NamedTuple):
    """A spoken text."""

    samples: np.ndarray  # [N] float32
    sampling_rate: int
    words: list[str]  # as the engine read them
    word_ends: list[float]  # seconds


_FESTIVAL = """\
(voice_cmu_us_slt_arctic_hts)
(define (say id text)
  (let ((utt (utt.synth (eval (list 'Utterance 'Text text)))))
    (utt.save.wave utt (string-append id ".wav") 'riff)
    (mapcar
      (lambda (word) (format t "%s %s " (item.name word) (item.feat word "word_end")))
      (utt.relation.items utt 'Word))
    (format t "\\n")))
"""


def festival(texts: Sequence[str]) -> Iterator[Spoken]:
    """Texts in the voice slt of the HTS project, 32 kHz, about 40 times as fast as they are heard."""
    with tempfile.TemporaryDirectory() as folder:
        calls = "".join(f'(say "{index}" "{text}.")\n' for index, text in enumerate(texts))
        Path(folder, "say.scm").write_text(_FESTIVAL + calls)
        done = subprocess.run(
            ["festival", "-b", "say.scm"], cwd=folder, check=True, capture_output=True, text=True
        )
        for index, line in enumerate(done.stdout.splitlines()):
            fields = line.split()
            samples, rate = soundfile.read(f"{folder}/{index}.wav", dtype="float32")
            yield Spoken(samples, rate, fields[::2], [float(end) for end in fields[1::2]])


class _Wave(Structure):
    _fields_ = [
        ("type", c_char_p),
        ("rate", c_int),
        ("length", c_int),
        ("channels", c_int),
        ("samples", POINTER(c_short)),
    ]


def flite(texts: Sequence[str], voice: str = "rms") -> Iterator[Spoken]:
    """Texts in a voice of flite, 16 kHz, hundreds of times as fast as they are heard."""
    names = ("flite", "flite_usenglish", "flite_cmulex", f"flite_cmu_us_{voice}")
    lib, _, _, own = (ctypes.CDLL(f"lib{name}.so.1", mode=ctypes.RTLD_GLOBAL) for name in names)
    for name in ("flite_synth_text", "utt_relation", "relation_head", "item_next"):
        getattr(lib, name).restype = c_void_p
    lib.item_feat_string.restype, lib.ffeature_float.restype = c_char_p, c_float
    lib.utt_wave.restype = POINTER(_Wave)
    register = own[f"register_cmu_us_{voice}"]
    register.restype = c_void_p
    lib.flite_init()
    speaker = c_void_p(register(None))
    for text in texts:
        utterance = c_void_p(lib.flite_synth_text(f"{text}.".encode(), speaker))
        wave = lib.utt_wave(utterance).contents
        samples = np.ctypeslib.as_array(wave.samples, (wave.length,)).astype(np.float32) / 2**15
        words, ends = [], []
        item = lib.relation_head(c_void_p(lib.utt_relation(utterance, b"Word")))
        while item:
            words.append(lib.item_feat_string(c_void_p(item), b"name").decode())
            ends.append(lib.ffeature_float(c_void_p(item), _WORD_END))
            item = lib.item_next(c_void_p(item))
        rate = wave.rate
        lib.delete_utterance(utterance)
        yield Spoken(samples, rate, words, ends)
