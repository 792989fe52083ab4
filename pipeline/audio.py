"""Stage 3, `audio`: reference clips to log-mels.

A voice is the list of clips of a row. Its log-mels travel once per block, as one dictionary value, however
many rows use it; a clip that several rows of the block name is decoded once. Waveforms stay in this stage.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.columns import (
    ID,
    INPUT_IDS,
    SOURCE,
    TEXT,
    VOICE_KEY,
    good_rows,
    replace_columns,
    require_columns,
)
from pipeline.decode import SAMPLE_RATE, decode_clip
from pipeline.errors import ERROR, RowError, error_array, error_record
from pipeline.payloads import AUDIO

NUM_MELS, HOP = 80, 256
CLIPS_AT_ONCE = 32  # in one transform; 6 s of audio are 0.5 MB

# The log-mels of a voice: float32 [clips, 80, frames] as bytes, null where the row has an error.
VOICE = pa.field("voice", pa.dictionary(pa.int32(), pa.large_binary()))

INPUT = pa.schema([ID, TEXT, INPUT_IDS, AUDIO, SOURCE, ERROR])
OUTPUT = pa.schema([ID, TEXT, INPUT_IDS, VOICE_KEY, VOICE, SOURCE, ERROR])

LogMel = Callable[[torch.Tensor], torch.Tensor]  # [B, samples] to [B, 80, frames]; a clip's result is its own


class AudioToMels:
    """Callable on a block. `seconds` of each clip are used: longer ones are cut, shorter ones zero-padded."""

    def __init__(self, log_mel: LogMel, seconds: float, audio_root: str | None = None) -> None:
        self.log_mel = log_mel
        self.seconds = seconds
        self.audio_root = audio_root

    def __call__(self, table: pa.Table) -> pa.Table:
        require_columns(table, INPUT)
        errors = table["error"].to_pylist()
        audio = table["audio"]
        clips: dict[tuple[Any, ...], torch.Tensor | RowError] = {}
        rows: dict[int, list[tuple[Any, ...]]] = {}
        for i in good_rows(table):
            rows[i] = [_identity(clip) for clip in audio[i].as_py()]
            for identity in rows[i]:
                if identity not in clips:
                    clips[identity] = self._decode(*identity)
        for i, names in rows.items():
            failed = next((clips[name] for name in names if isinstance(clips[name], RowError)), None)
            if isinstance(failed, RowError):
                errors[i] = error_record("audio", failed)
        voices = {i: tuple(names) for i, names in rows.items() if errors[i] is None}
        keys, column = self._voice_columns(len(table), voices, clips)
        return replace_columns(
            table,
            OUTPUT,
            {"voice_key": pa.array(keys, VOICE_KEY.type), "voice": column, "error": error_array(errors)},
        )

    def _decode(self, data: bytes | None, path: str | None) -> torch.Tensor | RowError:
        """A waveform [seconds * 22050], or the reason why there is none."""
        try:
            waveform = decode_clip(data, path, self.seconds, self.audio_root)
        except RowError as error:
            return error
        except Exception as error:  # whatever a codec may do must stay with the rows that name the clip
            return RowError(type(error).__name__, f"{path or 'embedded audio'}: {error}")
        length = round(self.seconds * SAMPLE_RATE)
        return torch.nn.functional.pad(waveform, (0, length - len(waveform)))

    def _voice_columns(
        self, count: int, voices: dict[int, tuple[Any, ...]], clips: dict[tuple[Any, ...], Any]
    ) -> tuple[list[str | None], pa.DictionaryArray]:
        used = list(dict.fromkeys(name for names in voices.values() for name in names))
        mels = dict(zip(used, self._mels([clips[name] for name in used]), strict=True))
        entries: dict[tuple[Any, ...], int] = {}
        values: list[bytes] = []
        indices: list[int | None] = [None] * count
        keys: list[str | None] = [None] * count
        for i, names in voices.items():
            if names not in entries:
                entries[names] = len(values)
                values.append(b"".join(mels[name] for name in names))
            indices[i] = entries[names]
        digests = [hashlib.blake2b(value, digest_size=16).hexdigest() for value in values]
        for i, index in enumerate(indices):
            keys[i] = None if index is None else digests[index]
        column = pa.DictionaryArray.from_arrays(
            pa.array(indices, pa.int32()), pa.array(values, pa.large_binary())
        )
        return keys, column

    def _mels(self, waveforms: Sequence[torch.Tensor]) -> list[bytes]:
        mels: list[bytes] = []
        for start in range(0, len(waveforms), CLIPS_AT_ONCE):
            mel_BMT = self.log_mel(torch.stack(list(waveforms[start : start + CLIPS_AT_ONCE])))
            mels += [mel_MT.contiguous().numpy().tobytes() for mel_MT in mel_BMT]
        return mels


def _identity(clip: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two clips of a block the same: their bytes, or else their path."""
    return (clip["bytes"], None if clip["bytes"] is not None else clip["path"])


def voice_mels(data: bytes, seconds: float) -> list[torch.Tensor]:
    """The log-mels [80, frames] of each clip, from a value of the `voice` column."""
    frames = round(seconds * SAMPLE_RATE) // HOP + 1
    mels_CMT = np.frombuffer(data, np.float32).reshape(-1, NUM_MELS, frames)
    return [torch.from_numpy(mel_MT.copy()) for mel_MT in mels_CMT]
