"""Random and damaged audio files: each is decoded to finite samples of the right length, or is a RowError."""

import io
import struct
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from clvp.audio.clip import MAX_PEAK, SILENCE
from pipeline.errors import RowError
from pipeline.rows.memory import SAMPLE_RATE
from pipeline.stages.decode import decode_clip
from tests.clvp.test_clip import FORMATS
from tests.pipeline.clips import chirp, encoded
from tests.pipeline.fuzzing import fuzzed, mutated, mutations

SECONDS = 1.0
CONTAINERS = {  # format: subtype
    "WAV": "PCM_16",
    "WAVEX": "PCM_24",
    "RF64": "FLOAT",
    "W64": "PCM_16",
    "AIFF": "PCM_16",
    "AU": "ULAW",
    "CAF": "ALAC_16",
    "FLAC": "PCM_16",
    "OGG": "VORBIS",
    "MP3": "MPEG_LAYER_III",
    "NIST": "PCM_16",
    "VOC": "PCM_16",
    "IRCAM": "PCM_16",
    "SVX": "PCM_16",
}
REASONS = {
    "EmptyAudio",
    "UndecodableAudio",
    "InvalidSamples",
    "NoSound",
    "SamplesOutOfRange",
    "SilentAudio",
    "TooShortAudio",
    "UnsupportedSampleRate",
}


@lru_cache
def clip(container: str, seconds: float, rate: int, channels: int) -> bytes:
    buffer = io.BytesIO()
    if container in ("VOC", "SVX"):
        channels = 1
    samples = chirp(seconds, rate, channels)
    soundfile.write(buffer, samples, rate, format=container, subtype=CONTAINERS[container])
    return buffer.getvalue()


def peak_bytes() -> int:
    """Of this process since it began; `getrusage` would count what its parent held as well."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise OSError("no VmHWM in /proc/self/status")


def check(data: bytes) -> str:
    """Decode a clip; how it ended."""
    try:
        waveform = decode_clip(data, None, SECONDS)
    except RowError as error:
        kind, message = error.kind, str(error)
    else:
        assert waveform.dtype == torch.float32
        assert 0 < len(waveform) <= round(SECONDS * SAMPLE_RATE)
        assert torch.isfinite(waveform).all()
        return "decoded"
    assert kind in REASONS
    assert message
    assert "object at 0x" not in message
    return "refused"


@pytest.mark.parametrize("container", list(CONTAINERS))
def test_damaged_files(container: str) -> None:
    ends: set[str] = set()

    @fuzzed(60)
    @given(
        seconds=st.sampled_from([0.02, 0.2, 1.5]),
        rate=st.sampled_from([8_000, 16_000, 44_100]),
        channels=st.integers(1, 2),
        seeds=st.lists(mutations(), min_size=1, max_size=3),
    )
    def run(seconds: float, rate: int, channels: int, seeds: list[int]) -> None:
        for seed in seeds:
            ends.add(check(mutated(clip(container, seconds, rate, channels), seed)))

    run()
    assert ends == {"decoded", "refused"}
    assert peak_bytes() < 3 << 30, "no header has made the process allocate what it claims"


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_of_ffmpeg(name: str) -> None:
    codec, container, rate, channels = FORMATS[name]
    whole = encoded(chirp(0.5, rate, channels), rate, codec, container)
    ends: set[str] = set()

    @fuzzed(60)
    @given(seeds=st.lists(mutations(), min_size=1, max_size=3))
    def run(seeds: list[int]) -> None:
        for seed in seeds:
            ends.add(check(mutated(whole, seed)))

    run()
    assert "decoded" in ends
    assert peak_bytes() < 3 << 30


MAGIC = [
    b"RIFF\xff\xff\xff\xffWAVEfmt ",
    b"fLaC",
    b"OggS\0\2",
    b"ID3\x04",
    b"\xff\xfb\x90\x64",
    b"FORM",
    b".snd",
    b"caff",
]


@fuzzed(200)
@given(magic=st.sampled_from(MAGIC), data=st.binary(max_size=400), repeated=st.sampled_from([1, 1, 50]))
def test_noise(magic: bytes, data: bytes, repeated: int) -> None:
    check(magic + data * repeated)


@fuzzed(60)
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=50),
    rate=st.one_of(st.integers(1, 2_000_000), st.sampled_from([1_000, 44_101, 767_999, 768_000])),
)
def test_samples_of_any_value_at_any_rate(values: list[float], rate: int) -> None:
    buffer = io.BytesIO()
    values *= rate // (5 * len(values)) + 1  # 0.2 seconds
    soundfile.write(buffer, np.array(values, np.float32), rate, format="WAV", subtype="FLOAT")
    end = check(buffer.getvalue())
    peak = np.abs(values).max()
    usable = 1_000 <= rate <= 768_000 and np.isfinite(values).all() and SILENCE <= peak <= MAX_PEAK
    assert end == ("decoded" if usable else "refused")


def test_ten_hours_are_not_read(tmp_path: Path) -> None:
    """A sparse file of 10 hours, and a header that claims four gigabytes."""
    path = tmp_path / "long.wav"
    soundfile.write(path, chirp(7.0, 22_050), 22_050, subtype="PCM_16")
    header = bytearray(path.read_bytes())
    size = 10 * 3600 * 22_050 * 2
    header[4:8], header[40:44] = (size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")
    path.write_bytes(header)
    short = decode_clip(None, str(path), 6.0)
    with path.open("r+b") as file:
        file.truncate(size + 44)
    before = peak_bytes()
    assert torch.equal(decode_clip(None, str(path), 6.0), short)
    assert peak_bytes() - before < 64 << 20


def box(kind: bytes, *content: bytes) -> bytes:
    """A box of an MP4 file."""
    data = b"".join(content)
    return (len(data) + 8).to_bytes(4, "big") + kind + data


def mp4(samples: int, size: int) -> bytes:
    """An MP4 file whose table claims so many samples of one size."""
    claims = struct.pack(">III", 0, size, samples)
    entry = box(b"sowt", bytes(6), b"\0\1", bytes(8), struct.pack(">HHHHI", 1, 16, 0, 0, 44_100 << 16))
    table = box(
        b"stbl",
        box(b"stsd", struct.pack(">II", 0, 1), entry),
        box(b"stts", struct.pack(">IIII", 0, 1, samples, 1)),
        box(b"stsc", struct.pack(">IIIII", 0, 1, 1, samples, 1)),
        box(b"stsz", claims),
        box(b"stco", struct.pack(">III", 0, 1, 32)),
    )
    place = box(b"dinf", box(b"dref", struct.pack(">II", 0, 1), box(b"url ", b"\0\0\0\1")))
    media = box(
        b"mdia",
        box(b"mdhd", struct.pack(">IIIIII", 0, 0, 0, 44_100, samples, 0)),
        box(b"hdlr", bytes(8), b"soun", bytes(13)),
        box(b"minf", box(b"smhd", bytes(8)), place, table),
    )
    movie = box(b"moov", box(b"mvhd", bytes(12), struct.pack(">I", 44_100), bytes(84)), box(b"trak", media))
    return box(b"ftyp", b"M4A \0\0\0\0M4A mp42") + movie + box(b"mdat", bytes(1000))


def wav_header(channels: int, rate: int, bits: int) -> bytes:
    width = channels * bits // 8
    form = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * width % 2**32, width % 2**16, bits)
    return b"RIFF\xff\xff\xff\xffWAVEfmt " + form + b"data\xff\xff\xff\xff"


BOMBS = {  # beginnings of sparse files of two gigabytes
    "nothing": b"",
    "MP4 samples": mp4(2**31 - 1, 2),
    "MP4 packet": mp4(1, 2**31 - 1),
    "ID3 of 256 MiB": b"ID3\x04\0\0\x7f\x7f\x7f\x7f",
    "ID3 picture": b"ID3\x04\0\0\x7f\x7f\x7f\x7fAPIC\x7f\x7f\x7f\0\0\0\0image/png\0\0\0",
    "MP3": b"\xff\xfb\x90\x64",
    "WAV, 512 channels": wav_header(512, 44_100, 16),
    "WAV, 64 channels": wav_header(64, 768_000, 32),
    "Matroska": b"\x1aE\xdf\xa3\x8bB\x82\x88matroska\x18S\x80g\x01" + b"\xff" * 7,
}


@pytest.mark.parametrize("name", BOMBS)
def test_headers_cost_no_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb"
    with path.open("wb") as file:
        file.write(BOMBS[name])
        file.truncate(2 << 30)
    before = peak_bytes()
    with suppress(RowError):
        decode_clip(None, str(path), 6.0)
    assert peak_bytes() - before < 400 << 20
