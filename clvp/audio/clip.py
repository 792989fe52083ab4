"""A clip of a voice, from a file of any kind that FFmpeg reads, to mono at 22.05 kHz.

FFmpeg, by way of PyAV, decides what the bytes are and reads to their end, whatever lengths a header claims.
Only the seconds that are needed are decoded, frame by frame, so that neither a ten-hour file nor a header
that claims a thousand channels costs memory. N samples, C channels.
"""

import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import numpy as np
import soxr
import torch
import torchaudio

from clvp.audio.features import MAX_PEAK, full_scale
from clvp.audio.mel import SAMPLING_RATE

MIN_RATE, MAX_RATE = 1_000, 768_000
MAX_BYTES = 1 << 27  # that are read of a file
BLOCK = 1 << 14  # samples over all channels that are looked at together, about
MAX_KERNEL_ELEMENTS = 1 << 22  # about, of a resampling filter bank, which torchaudio computes in float64

SILENCE = 1e-3  # -60 dB of full scale: what stays below it in all channels is silence
LEAD = 0.5  # seconds of silence that stay in front of the first sound
MAX_SILENCE = 60.0  # seconds in which there must be a sound
MIN_SOUND = 0.1  # seconds from the first sound to the end: less is no syllable
DEAD = 1e-2  # -20 dB of the loudest channel: a channel, or a mix, of less power does not count

_MARGIN = 512  # samples of the lower rate that a filter looks past the end of what it computes, at most

# Containers of sound. Others hold pictures or, as playlists do, make FFmpeg open what they name.
_CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,avr,caf,dsf,dts,eac3,epaf,flac,flv,iff,ircam,loas,matroska,mov,"
    "mp3,mpc,mpc8,mpeg,mpegts,nistsphere,ogg,oma,pvf,qcp,qoa,rm,shn,sox,tak,tta,voc,w64,wav,wv,xwma"
)
# Decoders, by how their names begin: none of pictures sees a byte.
_DECODERS = (
    "8svx aac ac3 adpcm alac amr ape atrac cook dca dsd eac3 flac g7 gsm libopencore mp1 mp2 mp3 mpc opus "
    "pcm qcelp qoa ra shorten sipr speex tak truespeech tta vorbis wavpack wma"
)
_OPTIONS = {
    "format_whitelist": _CONTAINERS,
    "codec_whitelist": ",".join(c for c in av.codecs_available if c.startswith(tuple(_DECODERS.split()))),
    "protocol_whitelist": "none",
    "max_probe_packets": "4",  # of PCM, which is tried for other codecs in disguise: by default for 20 ms
}

_BEGINNINGS = {  # in lower case, of what is often found under the name of a clip
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with git lfs pull",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<": "XML",
    b"{": "JSON",
    b"[": "JSON",
    b"#extm3u": "a playlist",
    b"pk\3\4": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"rar!": "a RAR archive",
    b"%pdf": "a PDF",
    b"\x89png": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"par1": "a Parquet file",
    b"\x93numpy": "a NumPy array",
}


class ClipError(ValueError):
    """A clip that can be no voice; `kind` is the reason's stable name."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_clip(stream: BinaryIO, seconds: float) -> torch.Tensor:
    """The first `seconds` of a clip: float32 [N] at 22,050 Hz, N at most seconds * 22,050, never zero.

    Of silence in front of the first sound, half a second is kept. Channels are averaged; those that are
    dead do not count, and where the others cancel out, the first one is taken.

    Raises ClipError for anything that holds no sound of a voice, or cannot be read.
    """
    source = _Source(stream)
    failure: Exception | None = None
    try:
        samples_N, rate = _read_mono(source, seconds)
    except (av.FFmpegError, ValueError, TypeError) as error:
        failure = error
    if source.failure is not None:
        raise ClipError("UnreadableAudio", str(source.failure)) from source.failure
    if not source.head:
        raise ClipError("EmptyAudio", "the clip has no bytes")
    if isinstance(failure, ClipError):
        raise failure
    if failure is not None:
        raise ClipError("UndecodableAudio", _what_is(source.head, failure)) from failure
    return resample(torch.from_numpy(samples_N), rate)[: round(seconds * SAMPLING_RATE)]


def _what_is(head: bytes, failure: Exception) -> str:
    """What a file is that is not taken for sound, as its first bytes tell."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, name in _BEGINNINGS.items():
        if start.startswith(beginning):
            return f"this is {name}"
    if not any(head):
        return f"its first {len(head):,} bytes are zero"
    return (
        f"damaged, encrypted or no sound that FFmpeg knows ({getattr(failure, 'strerror', failure)}); "
        f"it begins with {head[:16]!r}"
    )


def _read_mono(source: "_Source", seconds: float) -> tuple[np.ndarray, int]:
    """float32 [N] at the file's own rate, not resampled and a little longer, and that rate."""
    pieces: list[np.ndarray] = []  # [2, n]: the mean over the channels, and the first of them
    power_C = np.zeros(1)
    rate = total = silent = held = 0
    started = False
    for rate, samples_CN in _blocks(source):
        if not MIN_RATE <= rate <= MAX_RATE:
            raise ClipError(
                "UnsupportedSampleRate", f"{rate:,} Hz; from {MIN_RATE:,} to {MAX_RATE:,} Hz are supported"
            )
        missing = math.ceil((seconds + _MARGIN / min(rate, SAMPLING_RATE)) * rate)
        total += samples_CN.shape[1]
        with np.errstate(all="ignore"):  # NaN is looked for later
            power_C = power_C + np.square(samples_CN, dtype=np.float64).sum(axis=1)
            mean_N = samples_CN.mean(axis=0, dtype=np.float64).astype(np.float32)
            pieces.append(np.stack([mean_N, samples_CN[0]]))
        if not started:
            loud_N = ~(np.abs(samples_CN).max(axis=0) < SILENCE)  # NaN is no silence
            started = bool(loud_N.any())
            before = int(loud_N.argmax()) if started else len(loud_N)
            silent += before
            kept = len(loud_N) - before + math.ceil(LEAD * rate)
            pieces = [np.concatenate(pieces, axis=1)[:, -kept:]]
            held = pieces[0].shape[1]
        else:
            held += samples_CN.shape[1]
        if held >= missing if started else silent > MAX_SILENCE * rate:
            break
    if not total:
        raise ClipError("EmptyAudio", "the clip has no samples")
    if not np.isfinite(power_C).all():
        raise ClipError("InvalidSamples", "the clip holds NaN or infinite samples")
    sound = (total - silent if started else total) / rate
    if sound < MIN_SOUND:
        raise ClipError("TooShortAudio", f"{sound:.3f} s of sound; at least {MIN_SOUND} s are needed")
    if not started:
        raise ClipError("SilentAudio", f"nothing but silence (below -60 dB) in its first {sound:.1f} s")
    mean_N, first_N = np.concatenate(pieces, axis=1)[:, :missing]
    mono_N = _mixed(mean_N, first_N, power_C)
    if (peak := np.abs(mono_N).max()) > MAX_PEAK:
        raise ClipError(
            "SamplesOutOfRange",
            f"samples reach {peak:,.0f}, and full scale is 1: integers that were written as floats? Divide "
            "them by their full scale, 32,768 for 16 bits",
        )
    return mono_N, rate


def _mixed(mean_N: np.ndarray, first_N: np.ndarray, power_C: np.ndarray) -> np.ndarray:
    """One channel [N] of many, from their mean, the first of them, and the power of each."""
    live = np.count_nonzero(power_C > DEAD * power_C.max())
    if live < len(power_C):
        mean_N = mean_N * np.float32(len(power_C) / live)
    cancelled = len(power_C) > 1 and np.square(mean_N, dtype=np.float64).sum() < DEAD * power_C.max()
    return first_N if cancelled else mean_N


def _blocks(source: "_Source") -> Iterator[tuple[int, np.ndarray]]:
    """Sampling rate and samples [C, N] of a file's best stream of sound, about BLOCK values at a time.

    What is damaged is left out, as players do.
    """
    damage, form = None, None
    arrays: list[np.ndarray] = []
    with av.open(source, "r", container_options=_OPTIONS, metadata_errors="ignore") as container:
        if not container.streams.audio:
            kind = "video" if container.streams.video else "file"
            raise ClipError("NoSound", f"{container.format.long_name} {kind} without sound")
        stream = container.streams.best("audio")
        if stream is None:
            raise ClipError("UndecodableAudio", f"{container.format.long_name} with sound of an unknown kind")
        for packet in container.demux(stream):
            try:
                frames: list[Any] = packet.decode()
            except av.InvalidDataError as error:
                damage = error
                continue
            for frame in frames:
                here = (frame.sample_rate, frame.layout.nb_channels, frame.format.is_planar)
                if form not in (None, here):
                    raise ClipError("UndecodableAudio", "its rate or number of channels changes on the way")
                form = here
                arrays.append(frame.to_ndarray())
            if form is not None and sum(array.size for array in arrays) >= BLOCK:
                yield form[0], _samples(np.concatenate(arrays, axis=1), *form[1:])
                arrays = []
    if form is not None and arrays:
        yield form[0], _samples(np.concatenate(arrays, axis=1), *form[1:])
    if form is None and damage is not None:
        raise damage


def _samples(values: np.ndarray, channels: int, planar: bool) -> np.ndarray:
    """float32 [C, N] with full scale 1, of what FFmpeg gives."""
    return full_scale(values if planar else np.ascontiguousarray(values.reshape(-1, channels).T))


def resample(waveform_N: torch.Tensor, rate: int) -> torch.Tensor:
    """Band-limited resampling of float32 [N] from `rate` to 22,050 Hz: [ceil(N * 22050 / rate)].

    torchaudio's filter bank grows with the product of the reduced rates (gigabytes for 44,101 Hz); at such
    rates soxr filters, whose cut-off is sharper.
    """
    if rate == SAMPLING_RATE:
        return waveform_N
    divisor = math.gcd(rate, SAMPLING_RATE)
    source, target = rate // divisor, SAMPLING_RATE // divisor
    if source * target <= MAX_KERNEL_ELEMENTS:
        return torchaudio.functional.resample(waveform_N, rate, SAMPLING_RATE)
    length = math.ceil(len(waveform_N) * target / source)
    padded = torch.nn.functional.pad(waveform_N, (0, _MARGIN))  # else soxr rounds the length down
    return torch.from_numpy(soxr.resample(padded.numpy(), rate, SAMPLING_RATE, "VHQ")[:length])


class _Source:
    """A file as FFmpeg sees it: without a name, by which it would guess, and only so many bytes of it.

    No exception may pass through FFmpeg, where it could surface in another file's call: the first that broke
    off a read is kept as `failure`.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream: Any = stream
        self.left = MAX_BYTES
        self.head: bytes | None = None  # what was read first
        self.failure: Exception | None = None

    def read(self, size: int) -> bytes:
        try:
            data = bytes(self.stream.read(min(size, self.left)))
        except Exception as error:  # filesystems of fsspec raise their own kinds
            self.failure = self.failure or error
            return b""
        self.left -= len(data)
        self.head = data if self.head is None else self.head
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return int(self.stream.seek(offset, whence))
        except Exception as error:
            if whence == 0:  # others are questions about the size
                self.failure = self.failure or error
            return -1

    def tell(self) -> int:
        return int(self.stream.tell())
