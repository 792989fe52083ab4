"""Stage 3, `audio`: reference clips to log-mels, of one kind for the sampler and, where there is to be sound,
of another for the diffusion decoder.

A voice is the list of clips of a row. Its log-mels travel once per block, as one dictionary value, however
many rows use it; a clip that several rows of the block name is decoded once. Waveforms stay in this stage,
and only a few of them exist at a time. A random voice has no clips: its latents travel in place of log-mels.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline.errors import RowError
from pipeline.rows.columns import VOICE_KEY, good_rows, map_rows, set_columns
from pipeline.rows.memory import NUM_MELS, SAMPLE_RATE, clips_at_once, mel_frames
from pipeline.rows.payloads import AUDIO, RANDOM_CLIP
from pipeline.stages.decode import clip_name, decode_clip, listed_clips
from pipeline.stages.sound import RANDOM_KEY, SPOKEN_VOICE, VOICE

SPOKEN_SHAPE = (100, 401)

Identity = tuple[bytes | None, str | None]  # of a clip: the digest of its bytes, or else its path
Voice = tuple[Identity, ...]
LogMel = Callable[[torch.Tensor], torch.Tensor]  # [B, samples] to [B, 80, frames]; a clip's result is its own
SpokenMels = Callable[[torch.Tensor], Sequence[torch.Tensor]]  # [samples] to some [100, 401]; ValueError
# A name to the latents of the speech decoder and of what makes sound; FileNotFoundError
RandomVoice = Callable[[str], tuple[torch.Tensor, torch.Tensor]]


@dataclass
class AudioToMels:
    """Callable on a block."""

    log_mel: LogMel
    seconds: float  # of each clip that are used: longer ones are cut, shorter ones zero-padded
    audio_root: str | None = None  # with `places`: where clips may come from (`decode_clip`)
    places: Sequence[str] = ()
    spoken_mels: SpokenMels | None = None  # with it the block gets the column SPOKEN_VOICE too
    random_voice: RandomVoice | None = None  # makes the voices that belong to nobody

    def __call__(self, table: pa.Table) -> pa.Table:
        paths = pc.struct_field(pc.list_flatten(table["audio"]), "path")
        if pc.any(pc.match_substring_regex(paths, r"\*|/$")).as_py():
            where = (self.audio_root, self.places)
            found, table = map_rows(table, "audio", lambda i: listed_clips(table["audio"][i].as_py(), *where))
            table = set_columns(table, {AUDIO: found})
        audio = table["audio"]
        clips = _Clips(self)
        names = {i: tuple(clips.add(clip) for clip in audio[i].as_py()) for i in good_rows(table)}
        clips.flush()
        voices, table = map_rows(table, "audio", lambda i: clips.voice(names[i]))
        keys, column = _voice_columns(voices, clips.mels)
        columns = {VOICE_KEY: keys, VOICE: column}
        if self.spoken_mels is not None:
            columns[SPOKEN_VOICE] = _voice_columns(voices, clips.spoken)[1]
        return set_columns(table, columns)

    def decode(self, clip: dict[str, Any]) -> torch.Tensor | RowError:
        """A waveform of `seconds` at most, or the reason why there is none."""
        try:
            return decode_clip(clip["bytes"], clip["path"], self.seconds, self.audio_root, self.places)
        except RowError as error:
            return error
        except Exception as error:  # whatever a codec may do must stay with the rows that name the clip
            return RowError(type(error).__name__, f"{clip_name(clip['path'])}: {error}")


@dataclass
class _Clips:
    """The different clips of a block: log-mels as bytes [80, frames] float32, or why there are none."""

    stage: AudioToMels
    mels: dict[Identity, np.ndarray] = field(default_factory=dict)
    spoken: dict[Identity, np.ndarray] = field(default_factory=dict)
    failures: dict[Identity, RowError] = field(default_factory=dict)
    waiting: dict[Identity, torch.Tensor] = field(default_factory=dict)

    def add(self, clip: dict[str, Any]) -> Identity:
        name = _identity(clip)
        if any(name in known for known in (self.mels, self.failures, self.waiting)):
            return name
        if (random := _random_name(name)) and self.stage.random_voice is not None:
            try:
                latents = self.stage.random_voice(random)
                self.mels[name], self.spoken[name] = map(_as_bytes, latents)
            except FileNotFoundError as error:
                self.failures[name] = RowError("NoRandomVoices", str(error))
        else:
            decoded = self.stage.decode(clip)
            if not isinstance(decoded, RowError) and self.stage.spoken_mels is not None:
                try:
                    self.spoken[name] = _as_bytes(torch.stack(list(self.stage.spoken_mels(decoded))))
                except ValueError as error:
                    decoded = RowError("SilentAudio", f"{clip_name(clip['path'])}: {error}")
            if isinstance(decoded, RowError):
                self.failures[name] = decoded
            else:
                missing = round(self.stage.seconds * SAMPLE_RATE) - len(decoded)
                self.waiting[name] = torch.nn.functional.pad(decoded, (0, missing))
            if len(self.waiting) >= clips_at_once(self.stage.seconds):
                self.flush()
        return name

    def flush(self) -> None:
        if self.waiting:
            mel_BMT = self.stage.log_mel(torch.stack(list(self.waiting.values())))
            # Copies: a view would keep the whole batch for as long as one of its clips.
            mels = [_as_bytes(mel_MT) for mel_MT in mel_BMT]
            self.mels |= zip(self.waiting, mels, strict=True)
            self.waiting = {}

    def voice(self, names: Voice) -> Voice:
        """The clips of a voice. Raises what is wrong with the first that cannot be used."""
        if len(names) > 1 and any(map(_random_name, names)):
            raise RowError("MixedVoice", "a random voice cannot be mixed with clips")
        for name in names:
            if name in self.failures:
                raise self.failures[name]
        return names


def _as_bytes(mels: torch.Tensor) -> np.ndarray:
    """A copy, float32, as uint8 [n]."""
    return mels.numpy().astype(np.float32).reshape(-1).view(np.uint8)


def _identity(clip: dict[str, Any]) -> Identity:
    """What makes two clips of a block the same: their bytes, or else their path."""
    if clip["bytes"] is None:
        return None, clip["path"]
    return hashlib.blake2b(clip["bytes"], digest_size=16).digest(), None


def _random_name(name: Identity) -> str:
    """Of the random voice that a clip stands for; nothing for others."""
    path = name[1] or ""
    return path.removeprefix(RANDOM_CLIP) if path.startswith(RANDOM_CLIP) else ""


def _voice_columns(
    voices: Sequence[Voice | None], mels: dict[Identity, np.ndarray]
) -> tuple[list[str | None], pa.DictionaryArray]:
    """Keys [n] and the column [n] of the rows' voices. Empties `mels` as it goes: with 64 clips in
    every row, the log-mels of a block are gigabytes.
    """
    entries = {names: number for number, names in enumerate(dict.fromkeys(filter(None, voices)))}
    sizes = [sum(mels[name].nbytes for name in names) for names in entries]
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    data = np.empty(offsets[-1], np.uint8)
    order, position = [name for names in entries for name in names], 0
    uses = Counter(order)
    for name in order:
        data[position : position + mels[name].nbytes] = mels[name]
        position += mels[name].nbytes
        uses[name] -= 1
        if not uses[name]:
            del mels[name]
    digests = [
        RANDOM_KEY * bool(_random_name(names[0]))
        + hashlib.blake2b(data[begin:end].data, digest_size=16).hexdigest()
        for names, (begin, end) in zip(entries, pairwise(offsets), strict=True)
    ]
    numbers = [None if voice is None else entries[voice] for voice in voices]
    values = pa.Array.from_buffers(
        pa.large_binary(), len(entries), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    column = pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), values)
    return [None if number is None else digests[number] for number in numbers], column


def latent(data: bytes) -> torch.Tensor:
    """A random voice's [W], from a value of the `voice` or `spoken_voice` column; its key has RANDOM_KEY."""
    return torch.from_numpy(np.frombuffer(data, np.float32).copy())


def voice_mels(data: bytes, seconds: float) -> list[torch.Tensor]:
    """The log-mels [80, frames] of each clip, from a value of the `voice` column."""
    mels_CMT = np.frombuffer(data, np.float32).reshape(-1, NUM_MELS, mel_frames(seconds))
    return [torch.from_numpy(mel_MT.copy()) for mel_MT in mels_CMT]


def spoken_mels(data: bytes) -> list[torch.Tensor]:
    """The log-mels [100, 401] of each piece, from a value of the `spoken_voice` column."""
    mels_CMT = np.frombuffer(data, np.float32).reshape(-1, *SPOKEN_SHAPE)
    return [torch.from_numpy(mel_MT.copy()) for mel_MT in mels_CMT]
