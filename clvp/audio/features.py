"""ClvpFeatureExtractor: reference audio to the log-mel spectrograms of the conditioning encoder."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from clvp.audio.mel import log_mel, mel_filters
from clvp.batch import (
    PADDINGS,
    BatchFeature,
    Padding,
    Side,
    TensorType,
    check_choice,
    columns_of,
    round_up,
    stack,
    to_tensor,
    type_of,
)
from clvp.checkpoint import CheckpointError, CheckpointSource, content_of, write_json
from clvp.fields import Checked, Count

FEATURE_EXTRACTOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"

# Fewer samples than this no clip has: they are the channels of [samples, channels].
_FEWEST_SAMPLES = 9
# Samples lie in [-1, 1]; a few codecs overshoot, but nothing reaches this by accident.
MAX_PEAK = 32.0


@dataclass(eq=False)
class ClvpFeatureExtractor(Checked):
    """Log-mel spectrograms of the first seconds of mono audio."""

    feature_size: Count = 80  # mel bands
    sampling_rate: Count = 22050  # samples per second that the model expects; audio is not resampled here
    default_audio_length: float = 6  # seconds to which audio is cut or padded by default
    hop_length: Count = 256  # samples from one frame to the next
    chunk_length: Count = 30  # seconds; kept for compatibility, nothing depends on it
    n_fft: Count = 1024  # samples of a window
    padding_value: float = 0.0  # sample value of the padding
    # By these the bands are divided, if given; the checkpoint's are `clvp.audio.mel.TORTOISE_MEL_NORMS`.
    mel_norms: list[float] | None = None
    return_attention_mask: bool = False  # kept for compatibility; the argument of the call decides
    padding_side: Side = "right"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mel_norms is not None and len(self.mel_norms) != self.feature_size:
            raise ValueError(f"{len(self.mel_norms)} mel_norms for feature_size={self.feature_size}")

    @property
    def n_samples(self) -> int:
        """Samples in `chunk_length` seconds."""
        return self.chunk_length * self.sampling_rate

    @property
    def nb_max_frames(self) -> int:
        """Frames in `chunk_length` seconds."""
        return self.n_samples // self.hop_length

    @property
    def mel_filters(self) -> np.ndarray:
        """Triangular mel filters [n_fft // 2 + 1, feature_size], float64."""
        return mel_filters(self.sampling_rate, self.n_fft, self.feature_size).T.numpy()

    def log_mel(self, waveforms_BN: torch.Tensor) -> torch.Tensor:
        """Log-mels [B, feature_size, frames] of waveforms [B, N] that need neither cutting nor padding."""
        return log_mel(
            waveforms_BN,
            self.mel_norms,
            sampling_rate=self.sampling_rate,
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            num_mels=self.feature_size,
        )

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        truncation: bool = True,
        pad_to_multiple_of: int | None = None,
        return_tensors: TensorType | None = None,
        return_attention_mask: bool | None = True,
        padding: Padding = "max_length",
        max_length: int | None = None,
    ) -> BatchFeature:
        """Log-mels of a clip, of a batch of clips, or of several clips of each voice.

        Args:
            raw_speech: one mono clip (1-D array, tensor or list of numbers); a list of B clips, or a [B, N]
                array of them; or a list with the list of clips of each voice. Floats in [-1, 1], or
                integers of type int16, int32 or uint8, which are scaled.
            sampling_rate: that of the audio, to be checked; leaving it out warns.
            truncation: keep only the first `max_length` samples.
            pad_to_multiple_of: round the number of samples up to a multiple of this.
            return_tensors: "pt" or "np" for one tensor, None for a list of arrays.
            return_attention_mask: whether to tell samples (1) from padding (0).
            padding: "max_length", True or "longest" (of the batch), False.
            max_length: samples; by default `default_audio_length` seconds.

        Returns:
            `input_features`: [B, feature_size, frames] float32 with frames = 1 + samples // hop_length, and
            `attention_mask`: [B, samples] int32. Clips grouped by voice give [voices, clips, ...] tensors,
            and a list of [clips, ...] tensors where voices differ in their number of clips.

        Raises:
            ValueError: another sampling rate, stereo, empty audio, samples that are not finite, or audio too
                short for a spectrogram when it is not padded.
        """
        self._check_sampling_rate(sampling_rate)
        check_choice("padding", padding, PADDINGS)
        voices, grouped = _read_voices(raw_speech)
        limit = round(self.default_audio_length * self.sampling_rate) if max_length is None else max_length
        if limit < 1:
            raise ValueError(f"max_length must be positive, got {limit}")
        limit = round_up(limit, pad_to_multiple_of)
        flat = [clip for clips in voices for clip in clips]
        waveforms = [
            _read_waveform(clip, f"clip {index}", limit if truncation else None)
            for index, clip in enumerate(flat)
        ]
        length = 0  # each clip keeps its own
        if padding == "max_length":
            length = limit
        elif padding in (True, "longest"):
            length = round_up(max(map(len, waveforms)), pad_to_multiple_of)
        padded = [self._pad(waveform, length) for waveform in waveforms]
        counts = [len(clips) for clips in voices] if grouped else None
        features = [self.log_mel(torch.from_numpy(waveform)[None])[0].numpy() for waveform, _ in padded]
        batch = BatchFeature(input_features=_assemble(features, counts, return_tensors))
        if return_attention_mask is not False:
            batch["attention_mask"] = _assemble([mask for _, mask in padded], counts, return_tensors)
        return batch

    def pad(
        self,
        processed_features: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: Padding = True,
        return_tensors: TensorType | None = None,
    ) -> BatchFeature:
        """One batch of clips that were processed before, as a data loader wants it.

        `processed_features` are entries by name, with a list of clips each, or one mapping for each clip.
        Log-mels are never padded, whatever `padding` says, since the model has no mask for them and padding
        would change the voice: ValueError where clips differ in length. `__call__` pads the audio.
        """
        check_choice("padding", padding, PADDINGS)
        batch = BatchFeature()
        for name, column in columns_of(processed_features).items():
            tensors = return_tensors or type_of(column) or "np"
            batch[name] = to_tensor(stack([np.asarray(row) for row in column]), tensors)
        return batch

    def _check_sampling_rate(self, sampling_rate: int | None) -> None:
        if sampling_rate is None:
            warnings.warn(
                f"audio without sampling_rate is taken to have {self.sampling_rate} samples per second; pass "
                "sampling_rate to have it checked",
                stacklevel=3,
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"the audio has {sampling_rate} samples per second, the model expects {self.sampling_rate}: "
                "resample it first, e.g. with torchaudio.functional.resample"
            )

    def _pad(self, waveform: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        missing = max(length - len(waveform), 0)
        gap = (missing, 0) if self.padding_side == "left" else (0, missing)
        mask = np.pad(np.ones(len(waveform), dtype=np.int32), gap)
        return np.pad(waveform, gap, constant_values=self.padding_value), mask

    # ---- loading and saving ----

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load from a checkpoint folder or a hub id.

        `kwargs` are options of `huggingface_hub`, such as `revision`, and arguments of the constructor.
        Raises FileNotFoundError for no such folder or repository, or one without a feature extractor.
        """
        source, overrides = CheckpointSource.parse(pretrained_model_name_or_path, kwargs)
        config = source.json(FEATURE_EXTRACTOR_FILE)
        if config is None:  # processors saved since transformers 5
            config = (source.json(PROCESSOR_FILE) or {}).get("feature_extractor")
        if config is None:
            raise FileNotFoundError(
                f"{source.location} holds no {FEATURE_EXTRACTOR_FILE}: is it a CLVP checkpoint?"
            )
        if not isinstance(config, dict):
            raise CheckpointError(f"feature_extractor in {PROCESSOR_FILE} of {source.location} is no object")
        with content_of(FEATURE_EXTRACTOR_FILE, source):
            return cls.from_dict(config, **overrides)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write `preprocessor_config.json` into a folder; returns its path."""
        path = Path(save_directory) / FEATURE_EXTRACTOR_FILE
        write_json(path, self.to_dict())
        return [str(path)]

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **overrides: Any) -> Self:
        """From the contents of `preprocessor_config.json`; entries that belong to other tools are ignored."""
        names = {item.name for item in fields(cls)}
        known = {name: value for name, value in feature_extractor_dict.items() if name in names}
        return cls(**(known | overrides))

    def to_dict(self) -> dict[str, Any]:
        """The contents of `preprocessor_config.json`."""
        return {
            "feature_extractor_type": type(self).__name__,
            "processor_class": "ClvpProcessor",
            **asdict(self),
            "n_samples": self.n_samples,
            "nb_max_frames": self.nb_max_frames,
        }


def _assemble(arrays: list[np.ndarray], counts: list[int] | None, tensor_type: TensorType | None) -> Any:
    """Arrays of all clips as lists or tensors, grouped where `counts` says how many clips each voice has."""
    if counts is None:
        return arrays if tensor_type is None else to_tensor(stack(arrays), tensor_type)
    remaining = iter(arrays)
    voices = [[next(remaining) for _ in range(count)] for count in counts]
    if tensor_type is None:
        return voices
    stacked = [stack(clips) for clips in voices]
    if len(set(counts)) == 1:
        return to_tensor(stack(stacked), tensor_type)
    return [to_tensor(clips, tensor_type) for clips in stacked]


# ---- audio as callers hand it over ----


def _read_voices(raw_speech: Any) -> tuple[list[list[Any]], bool]:
    """The clips of each voice, unread, and whether `raw_speech` groups clips by voice.

    Raises ValueError for nothing at all, and for arrays that are or may be multi-channel audio.
    """
    if isinstance(raw_speech, np.ndarray | torch.Tensor):
        shape = tuple(raw_speech.shape)
        if len(shape) == 1:
            return [[raw_speech]], False
        if len(shape) != 2:
            raise ValueError(
                f"raw_speech has {len(shape)} dimensions; expected [samples] or [clips, samples]"
            )
        if shape[0] == 2:
            raise ValueError(
                f"raw_speech of shape {list(shape)} may be stereo or two clips. Pass list(raw_speech) for "
                "two clips, or mix stereo down with raw_speech.mean(axis=0)"
            )
        return [[clip] for clip in raw_speech], False
    if not isinstance(raw_speech, Sequence) or isinstance(raw_speech, str | bytes):
        raise TypeError(f"raw_speech must be an array, a tensor or a list, not {type(raw_speech).__name__}")
    if not len(raw_speech):
        raise ValueError("raw_speech is empty: it holds neither samples nor clips")
    if _is_number(raw_speech[0]):
        return [[raw_speech]], False
    grouped = [isinstance(entry, list | tuple) and entry and not _is_number(entry[0]) for entry in raw_speech]
    voices = [list(entry) if group else [entry] for entry, group in zip(raw_speech, grouped, strict=True)]
    return voices, any(grouped)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (hasattr(value, "ndim") and value.ndim == 0)


def _read_waveform(clip: Any, name: str, max_samples: int | None) -> np.ndarray:
    """Samples [N] as float32 in [-1, 1], at most the first `max_samples`; integers are scaled by their type.

    Raises ValueError for a clip, called `name` in the message, that is empty, has several channels, samples
    that are NaN or infinite, or integers of a type without a full scale.
    """
    samples = _to_numpy(clip, name)
    if samples.ndim != 1:
        raise ValueError(
            f"{name} has the shape {list(samples.shape)}: mix its channels down to mono first, e.g. with "
            "clip.mean(axis=0). Several clips of one voice go into a list"
        )
    if samples.size == 0:
        raise ValueError(f"{name} is empty: it has no samples")
    count = samples.size
    if samples.dtype.kind != "f" and samples.dtype not in (np.uint8, np.int8, np.int16, np.int32):
        raise ValueError(
            f"{name} has samples of type {samples.dtype}: pass floats in [-1, 1], or integers of type int16, "
            "int32 or uint8, which have a full scale"
        )
    samples = full_scale(samples[:max_samples])
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(f"{name} is not finite: sample {first} is {samples[first]}")
    if count < _FEWEST_SAMPLES:
        raise ValueError(
            f"{name} has only {count} samples: raw_speech looks like [samples, channels]. Mix the channels "
            "down with raw_speech.mean(axis=1)"
        )
    peak = float(np.abs(samples).max())
    if peak > MAX_PEAK:
        warnings.warn(
            f"{name} reaches {peak:.0f}, far outside [-1, 1]. Integers kept as floats? Pass them as int16",
            stacklevel=4,
        )
    return samples


def _to_numpy(clip: Any, name: str) -> np.ndarray:
    if isinstance(clip, torch.Tensor):
        clip = clip.detach().cpu()
        return (clip.float() if clip.dtype == torch.bfloat16 else clip).numpy()
    try:
        return np.asarray(clip)
    except ValueError as error:
        raise ValueError(f"{name} is no plain sequence of samples: {error}") from error


def full_scale(samples: np.ndarray) -> np.ndarray:
    """Float32 samples with a full scale of 1, of floats, unsigned bytes, or signed integers."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        samples = samples * (0.5 / (1 << 8 * samples.itemsize - 2))
    with np.errstate(over="ignore"):  # what float32 cannot hold is found as infinite
        return samples.astype(np.float32)
