"""ClvpFeatureExtractor: reference audio to the log-mel spectrograms of the conditioning encoder."""

import json
import os
import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch

from clvp.batch import BatchFeature
from clvp.checkpoint import CheckpointSource, read_json, write_json
from clvp.mel import log_mel, mel_filters
from clvp.text_batch import Side, TensorType
from clvp.waveforms import read_voices, read_waveform

__all__ = ["ClvpFeatureExtractor", "log_mel"]

FEATURE_EXTRACTOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"

AudioPadding = bool | Literal["longest", "max_length", "do_not_pad"] | None

# The entries of preprocessor_config.json that are arguments of the constructor.
ARGUMENTS = (
    *("feature_size", "sampling_rate", "default_audio_length", "hop_length", "chunk_length", "n_fft"),
    *("padding_value", "mel_norms", "return_attention_mask", "padding_side"),
)


class ClvpFeatureExtractor:
    """Log-mel spectrograms of the first seconds of mono audio.

    Args:
        feature_size: number of mel bands.
        sampling_rate: samples per second that the model expects; audio is not resampled here.
        default_audio_length: seconds to which audio is cut or padded by default.
        hop_length: samples from one frame to the next.
        chunk_length: seconds; kept for compatibility, nothing depends on it.
        n_fft: samples of a window.
        padding_value: sample value of the padding.
        mel_norms: `feature_size` numbers by which the bands are divided; None leaves them as they are. The
            checkpoint's are `clvp.mel.TORTOISE_MEL_NORMS`.
        return_attention_mask: kept for compatibility; the argument of the call decides.
        padding_side: "right" or "left".
    """

    model_input_names: ClassVar = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 22050,
        default_audio_length: float = 6,
        hop_length: int = 256,
        chunk_length: int = 30,
        n_fft: int = 1024,
        padding_value: float = 0.0,
        mel_norms: list[float] | tuple[float, ...] | None = None,
        return_attention_mask: bool = False,
        padding_side: Side = "right",
    ) -> None:
        if mel_norms is not None and len(mel_norms) != feature_size:
            raise ValueError(f"{len(mel_norms)} mel_norms for feature_size={feature_size}")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side={padding_side!r}: expected 'left' or 'right'")
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.default_audio_length = default_audio_length
        self.hop_length = hop_length
        self.chunk_length = chunk_length
        self.n_fft = n_fft
        self.padding_value = padding_value
        self.mel_norms = None if mel_norms is None else [float(norm) for norm in mel_norms]
        self.return_attention_mask = return_attention_mask
        self.padding_side: Side = padding_side

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
        padding: AudioPadding = "max_length",
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
        voices, grouped = read_voices(raw_speech)
        limit = (
            max_length if max_length is not None else round(self.default_audio_length * self.sampling_rate)
        )
        if limit < 1:
            raise ValueError(f"max_length must be positive, got {limit}")
        limit = _round_up(limit, pad_to_multiple_of)
        counter = iter(range(sum(map(len, voices))))
        waveforms = [
            [read_waveform(clip, f"clip {next(counter)}", limit if truncation else None) for clip in clips]
            for clips in voices
        ]
        length = self._padded_length(waveforms, padding, limit, pad_to_multiple_of)
        padded = [[self._pad(waveform, length) for waveform in clips] for clips in waveforms]
        features = [[self._features(waveform) for waveform, _ in clips] for clips in padded]
        batch = BatchFeature(input_features=_stack(features, grouped, return_tensors))
        if return_attention_mask is not False:
            masks = [[mask for _, mask in clips] for clips in padded]
            batch["attention_mask"] = _stack(masks, grouped, return_tensors)
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

    def _padded_length(
        self, voices: list[list[np.ndarray]], padding: AudioPadding, limit: int, multiple: int | None
    ) -> int:
        """The number of samples to which clips are padded; 0 leaves each as it is."""
        if padding in (False, None, "do_not_pad"):
            return 0
        if padding == "max_length":
            return limit
        if padding in (True, "longest"):
            return _round_up(max(len(waveform) for clips in voices for waveform in clips), multiple)
        raise ValueError(
            f"padding={padding!r}: expected True, False, 'longest', 'max_length' or 'do_not_pad'"
        )

    def _pad(self, waveform: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        missing = max(length - len(waveform), 0)
        gap = (missing, 0) if self.padding_side == "left" else (0, missing)
        mask = np.pad(np.ones(len(waveform), dtype=np.int32), gap)
        return np.pad(waveform, gap, constant_values=self.padding_value), mask

    def _features(self, waveform: np.ndarray) -> np.ndarray:
        return self.log_mel(torch.from_numpy(waveform)[None])[0].numpy()

    # ---- loading and saving ----

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """Load from a checkpoint folder or a hub id; `overrides` are arguments of the constructor.

        Raises:
            FileNotFoundError: no such folder or repository, or it holds no feature extractor.
        """
        source = CheckpointSource(pretrained_model_name_or_path, revision, cache_dir, token, local_files_only)
        config = source.json(FEATURE_EXTRACTOR_FILE)
        if config is None:  # processors saved since transformers 5
            config = (source.json(PROCESSOR_FILE) or {}).get("feature_extractor")
        if config is None:
            raise FileNotFoundError(
                f"{source.location} holds no {FEATURE_EXTRACTOR_FILE}: is it a CLVP checkpoint?"
            )
        return cls.from_dict(config, **overrides)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write `preprocessor_config.json` into a folder; returns its path."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / FEATURE_EXTRACTOR_FILE)
        return [str(folder / FEATURE_EXTRACTOR_FILE)]

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **overrides: Any) -> Self:
        """From the contents of `preprocessor_config.json`; entries that belong to other tools are ignored."""
        known = {name: feature_extractor_dict[name] for name in ARGUMENTS if name in feature_extractor_dict}
        return cls(**(known | overrides))

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """From a file in the layout of `preprocessor_config.json`."""
        return cls.from_dict(read_json(Path(json_file)))

    def to_dict(self) -> dict[str, Any]:
        """The contents of `preprocessor_config.json`."""
        return {
            "feature_extractor_type": type(self).__name__,
            "processor_class": "ClvpProcessor",
            **{name: getattr(self, name) for name in (*ARGUMENTS, "n_samples", "nb_max_frames")},
        }

    def to_json_string(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write `to_json_string` into a file."""
        write_json(Path(json_file_path), self.to_dict())

    def __repr__(self) -> str:
        return f"ClvpFeatureExtractor {self.to_json_string()}"


def _round_up(length: int, multiple: int | None) -> int:
    return -(-length // multiple) * multiple if multiple else length


def _stack(voices: list[list[np.ndarray]], grouped: bool, tensor_type: TensorType | None) -> Any:
    """Arrays of each voice's clips as lists or tensors; without grouping every voice has one clip."""
    if tensor_type not in (None, "np", "pt"):
        raise ValueError(f"return_tensors={tensor_type!r}: expected 'pt', 'np' or None")
    if tensor_type is None:
        return voices if grouped else [clips[0] for clips in voices]
    lengths = {clip.shape[-1] for clips in voices for clip in clips}
    if len(lengths) > 1:
        raise ValueError(
            f"clips of {min(lengths)} to {max(lengths)} samples or frames do not fit into one tensor: pad "
            "them (padding='max_length' or 'longest')"
        )
    stacked = [np.stack(clips) for clips in voices]
    if not grouped:
        return _to_tensor(np.concatenate(stacked), tensor_type)
    if len({len(clips) for clips in voices}) == 1:
        return _to_tensor(np.stack(stacked), tensor_type)
    return [_to_tensor(clips, tensor_type) for clips in stacked]


def _to_tensor(array: np.ndarray, tensor_type: TensorType) -> Any:
    return torch.from_numpy(array) if tensor_type == "pt" else array
