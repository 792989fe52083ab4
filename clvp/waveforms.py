"""Reading audio as callers hand it over: one clip, a batch, or several clips of each voice."""

import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

# More channels than this no file has; fewer samples than this no clip has.
_MAX_CHANNELS = 8
# Samples lie in [-1, 1]; a few codecs overshoot, but nothing reaches this by accident.
_SUSPICIOUS_PEAK = 32.0


def read_voices(raw_speech: Any) -> tuple[list[list[Any]], bool]:
    """The clips of each voice, unread, and whether `raw_speech` groups clips by voice.

    One clip is a 1-D array, tensor or list of numbers. A batch is a list of clips, or a 2-D array with a
    clip in each row. A list of lists of clips holds several clips of each voice.

    Raises:
        ValueError: nothing at all, or a shape that is or may be multi-channel audio.
    """
    if _is_array(raw_speech):
        return [[clip] for clip in _rows_of_array(raw_speech)], False
    if not isinstance(raw_speech, Sequence) or isinstance(raw_speech, (str, bytes)):
        raise TypeError(f"raw_speech must be an array, a tensor or a list, not {type(raw_speech).__name__}")
    if not len(raw_speech):
        raise ValueError("raw_speech is empty: it holds neither samples nor clips")
    if _is_number(raw_speech[0]):
        return [[raw_speech]], False
    if len(raw_speech) > _MAX_CHANNELS and all(0 < _length(entry) <= _MAX_CHANNELS for entry in raw_speech):
        raise ValueError(
            f"raw_speech is a list of {len(raw_speech)} entries of at most {_MAX_CHANNELS} samples: it looks "
            "like [samples, channels]. Mix the channels down: np.asarray(raw_speech).mean(axis=1)"
        )
    grouped = any(_is_group(entry) for entry in raw_speech)
    return [list(entry) if _is_group(entry) else [entry] for entry in raw_speech], grouped


def read_waveform(clip: Any, name: str, max_samples: int | None = None) -> np.ndarray:
    """Samples [N] as float32 in [-1, 1], at most the first `max_samples`; integers are scaled by their type.

    Raises:
        ValueError: the clip, called `name` in the message, is empty, has several channels, samples that are
            NaN or infinite, or integers of a type without a full scale.
    """
    samples = _to_numpy(clip, name)
    if samples.ndim == 2 and 1 in samples.shape:
        samples = samples.reshape(-1)
    if samples.ndim != 1:
        raise ValueError(
            f"{name} has the shape {list(samples.shape)}: mix its channels down to mono first, e.g. with "
            "clip.mean(axis=0). Several clips of one voice go into a list"
        )
    if samples.size == 0:
        raise ValueError(f"{name} is empty: it has no samples")
    return _checked_samples(_to_float(samples[:max_samples], name), name)


def _rows_of_array(array: Any) -> list[Any]:
    shape = tuple(array.shape)
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        return [array]
    if len(shape) != 2:
        raise ValueError(f"raw_speech has {len(shape)} dimensions; expected [samples] or [clips, samples]")
    if shape[0] == 2:
        raise ValueError(
            f"raw_speech of shape {list(shape)} may be stereo or two clips. Pass list(raw_speech) for two "
            "clips, or mix stereo down with raw_speech.mean(axis=0)"
        )
    if 0 < shape[1] <= _MAX_CHANNELS < shape[0]:
        raise ValueError(
            f"raw_speech of shape {list(shape)} looks like [samples, channels]. Mix the channels down with "
            "raw_speech.mean(axis=1)"
        )
    return list(array)


def _to_numpy(clip: Any, name: str) -> np.ndarray:
    if isinstance(clip, torch.Tensor):
        clip = clip.detach().cpu()
        return (clip.float() if clip.dtype == torch.bfloat16 else clip).numpy()
    try:
        return np.asarray(clip)
    except ValueError as error:
        raise ValueError(f"{name} is no plain sequence of samples: {error}") from error


def _to_float(samples: np.ndarray, name: str) -> np.ndarray:
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold is found as infinite
            return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128.0) / 128.0
    if samples.dtype in (np.int8, np.int16, np.int32):
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    if samples.dtype.kind in "iu" and np.abs(samples).max() <= 1:  # a list of 0 and 1
        return samples.astype(np.float32)
    raise ValueError(
        f"{name} has samples of type {samples.dtype}: pass floats in [-1, 1], or integers of type int16, "
        "int32 or uint8, which have a full scale"
    )


def _checked_samples(samples: np.ndarray, name: str) -> np.ndarray:
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(f"{name} is not finite: sample {first} is {samples[first]}")
    peak = float(np.abs(samples).max())
    if peak > _SUSPICIOUS_PEAK:
        warnings.warn(
            f"{name} reaches {peak:.0f}, far outside [-1, 1]. Integers kept as floats? Pass them as int16",
            stacklevel=4,
        )
    return samples


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (hasattr(value, "ndim") and value.ndim == 0)


def _is_group(entry: Any) -> bool:
    """Whether an entry of a batch is a list of clips, not a clip."""
    return isinstance(entry, (list, tuple)) and len(entry) > 0 and not _is_number(entry[0])


def _length(entry: Any) -> int:
    """Samples of a clip; a number for a list of clips that no clip has."""
    return _MAX_CHANNELS + 1 if _is_group(entry) or not hasattr(entry, "__len__") else len(entry)
