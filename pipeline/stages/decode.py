"""One reference clip, from bytes, a path or a URI, to its first seconds as a mono waveform at 22.05 kHz.

Only the seconds that are needed are read and decoded, in pieces of bounded size, so that neither a ten-hour
file nor a header that claims a thousand channels costs memory.
"""

import io
import math
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, BinaryIO

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import soundfile
import soxr
import torch
import torchaudio

from pipeline import storage
from pipeline.errors import RowError
from pipeline.rows.memory import SAMPLE_RATE

MIN_RATE, MAX_RATE = 1_000, 768_000
MAX_SAMPLES_AT_ONCE = 1 << 22  # over all channels
MAX_KERNEL_ELEMENTS = 1 << 22  # about, of a resampling filter bank, which torchaudio computes in float64

_MARGIN = 512  # samples of the lower rate that a filter looks past the end of what it computes, at most


def decode_clip(
    data: bytes | None,
    path: str | None,
    seconds: float,
    root: str | None = None,
    places: Sequence[str] = (),
) -> torch.Tensor:
    """The first `seconds` of a clip: mono float32 [N] at 22,050 Hz, N at most seconds * 22,050, never zero.

    `data` wins over `path`. With `root`, a path must lie below it, after symbolic links are resolved; else a
    URI must lie on a host or bucket of `places`. Credentials and options come from them, not from `path`.

    Raises RowError for anything that is no readable, finite, non-empty audio.
    """
    stream = _open_clip(data, path, root, places)
    with stream.reader:
        try:
            samples, rate = _read_mono(stream, seconds)
        except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
            _raise_if_transfer_failed(stream, path)
            reason = getattr(error, "error_string", error)
            raise RowError("UndecodableAudio", f"{_label(path)}: {reason}") from error
        except RowError as error:
            raise RowError(error.kind, f"{_label(path)}: {error}") from error
        _raise_if_transfer_failed(stream, path)
    if not len(samples):
        raise RowError("EmptyAudio", f"{_label(path)}: the clip has no samples")
    if not np.isfinite(samples).all():
        raise RowError("InvalidSamples", f"{_label(path)}: the clip holds NaN or infinite samples")
    waveform = resample(torch.from_numpy(samples), rate)
    return waveform[: round(seconds * SAMPLE_RATE)]


def _label(path: str | None) -> str:
    return path if path is not None else "embedded audio"


def _read_mono(stream: Any, seconds: float) -> tuple[np.ndarray, int]:
    """float32 [frames] at the file's own rate: the mean over the channels, and that rate."""
    with soundfile.SoundFile(stream) as file:
        rate, channels = file.samplerate, file.channels
        if not MIN_RATE <= rate <= MAX_RATE:
            raise RowError(
                "UnsupportedSampleRate", f"{rate:,} Hz; from {MIN_RATE:,} to {MAX_RATE:,} Hz are supported"
            )
        missing = math.ceil((seconds + _MARGIN / min(rate, SAMPLE_RATE)) * rate)
        pieces = []
        while missing > 0:
            piece = file.read(
                min(missing, max(MAX_SAMPLES_AT_ONCE // channels, 1)), dtype="float32", always_2d=True
            )
            if not len(piece):
                break
            with np.errstate(all="ignore"):  # NaN is looked for later
                mono = (
                    piece.mean(axis=1, dtype=np.float64).astype(np.float32) if channels > 1 else piece[:, 0]
                )
            pieces.append(mono)
            missing -= len(piece)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32), rate


def resample(waveform_N: torch.Tensor, rate: int) -> torch.Tensor:
    """Band-limited resampling of float32 [N] from `rate` to 22,050 Hz: [ceil(N * 22050 / rate)].

    torchaudio's filter bank grows with the product of the reduced rates (gigabytes for 44,101 Hz); at such
    rates soxr filters, whose cut-off is sharper.
    """
    if rate == SAMPLE_RATE:
        return waveform_N
    divisor = math.gcd(rate, SAMPLE_RATE)
    source, target = rate // divisor, SAMPLE_RATE // divisor
    if source * target <= MAX_KERNEL_ELEMENTS:
        return torchaudio.functional.resample(waveform_N, rate, SAMPLE_RATE)
    length = math.ceil(len(waveform_N) * target / source)
    padded = torch.nn.functional.pad(waveform_N, (0, _MARGIN))  # else soxr rounds the length down
    return torch.from_numpy(soxr.resample(padded.numpy(), rate, SAMPLE_RATE, "VHQ")[:length])


def _open_clip(
    data: bytes | None, path: str | None, root: str | None, places: Sequence[str]
) -> "_ClipStream":
    """A seekable binary stream, to be closed by the caller."""
    if data is not None:
        if not data:
            raise RowError("EmptyAudio", "the embedded audio has no bytes")
        return _ClipStream(io.BytesIO(data))
    if path is None:
        raise RowError("MissingAudio", "audio holds neither bytes nor a path")
    try:
        if root is not None:
            found, places = contained(path, root), (root,)
        else:
            found = storage.absolute(path) if storage.is_local(path) else _named(path, places)
        if storage.is_local(found):
            return _ClipStream(_open_local(found, root))
        return _ClipStream(_open_remote(found, places))
    except FileNotFoundError as error:
        # fsspec says it of whatever a server answers.
        reason = f" ({error.__cause__})" if error.__cause__ else ""
        raise RowError("AudioNotFound", f"no such file: {path}{reason}") from error
    except (OSError, pa.ArrowException, ValueError, ImportError) as error:
        raise RowError("UnreadableAudio", f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _raise_if_transfer_failed(stream: "_ClipStream", path: str | None) -> None:
    if stream.failure is not None:
        raise RowError("UnreadableAudio", f"{_label(path)}: {stream.failure}") from stream.failure


def contained(path: str, root: str) -> str:
    """`path`, symbolic links resolved, or with the options of `root`. Raises RowError unless it lies below
    `root`, a folder or URI.
    """
    if storage.is_local(root) and storage.is_local(path):
        real_root = os.path.realpath(storage.absolute(root))
        real_path = os.path.realpath(storage.absolute(path))
        inside = real_path.startswith(real_root.rstrip("/") + "/")
    else:
        real_path = "" if storage.is_local(path) else storage.placed(path, root) or ""
        head, root_head = (storage.split_query(uri)[0] for uri in (real_path, root))
        below = head.removeprefix(root_head.rstrip("/") + "/")
        inside = below != head and not {"", ".", ".."} & set(below.split("/"))
    if not inside:
        raise RowError("AudioOutsideRoot", f"{path} is not below the audio root {root}")
    return real_path


def _named(path: str, places: Sequence[str]) -> str:
    """A URI with the options of the place that it lies on. Raises RowError where there is none."""
    for place in places:
        if found := storage.placed(path, place):
            return found
    raise RowError(
        "AudioNotAllowed",
        f"{path} lies on a host or bucket that was not named, or brings credentials or options of its own: "
        f"if you trust it, name it with all that it needs, as in --audio-hosts {storage.origin(path)}",
    )


def _open_local(path: str, root: str | None) -> BinaryIO:
    """`path` is absolute; below a `root` it has no links, and one that has come since is not followed."""
    flags, folder = os.O_RDONLY | os.O_CLOEXEC, None
    with ExitStack() as opened:
        if root is not None:
            real_root = os.path.realpath(storage.absolute(root))
            *folders, path = os.path.relpath(path, real_root).split("/")
            for name in (real_root, *folders):
                folder = os.open(name, flags | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                opened.callback(os.close, folder)
            flags |= os.O_NOFOLLOW
        # Before it is opened: opening a device may do something.
        _check_is_file(os.stat(path, dir_fd=folder, follow_symlinks=root is None).st_mode)
        # O_NONBLOCK: opening a FIFO, should there be one by now, must not wait for a writer.
        descriptor = os.open(path, flags | os.O_NONBLOCK, dir_fd=folder)
    try:
        _check_is_file(os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb", buffering=1 << 18)
    except OSError:
        os.close(descriptor)
        raise


def _check_is_file(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError("it is a folder, FIFO, socket or device, not a file")


def _open_remote(path: str, places: Sequence[str]) -> BinaryIO:
    if storage.scheme_of(path) in ("http", "https"):
        reader = _web(tuple(places)).open(path)
    else:
        filesystem, name = storage.resolve(path)
        reader = filesystem.open_input_file(name)
    return io.BufferedReader(reader, buffer_size=1 << 19)


@lru_cache(maxsize=8)
def _web(places: tuple[str, ...]) -> Any:
    """fsspec's filesystem of the web, but no server sends it on to a host that is not named."""
    origins = set(map(storage.origin, places))

    async def check(request: Any, send: Any) -> Any:
        if (target := storage.origin(str(request.url))) not in origins:
            raise PermissionError(f"the server sends on to {target}, which is not in --audio-hosts")
        return await send(request)

    return fsspec.filesystem("https", client_kwargs={"middlewares": (check,)})


class _ClipStream:
    """A file for soundfile, which cannot see exceptions: `failure` keeps the first that broke off a read."""

    def __init__(self, reader: BinaryIO) -> None:
        self.reader: Any = reader
        self.failure: Exception | None = None

    def readinto(self, buffer: Any) -> int:
        try:
            return self.reader.readinto(buffer) or 0
        except Exception as error:  # filesystems of fsspec raise their own kinds
            self.failure = self.failure or error
            return 0

    def read(self, count: int = -1) -> bytes:
        return bytes(self.reader.read(count))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # A broken header may send it to before the beginning: it stays, and soundfile notices.
        if whence != io.SEEK_SET or 0 <= offset < 1 << 62:
            try:
                return int(self.reader.seek(offset, whence))
            except (OSError, ValueError, OverflowError) as error:
                if self.failure is None and whence == io.SEEK_SET:
                    self.failure = error
        return self.tell()

    def tell(self) -> int:
        return int(self.reader.tell())
