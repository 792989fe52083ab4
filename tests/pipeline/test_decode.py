import io
import os
import unicodedata
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from clvp.audio import clip
from clvp.audio.clip import resample
from pipeline.errors import RowError
from pipeline.rows.memory import SAMPLE_RATE
from pipeline.stages import decode
from pipeline.stages.decode import decode_clip
from tests.pipeline.clips import chirp, write_clip

FORMATS = {
    "wav": {"subtype": "PCM_16"},
    "wav24": {"subtype": "PCM_24", "format": "WAV"},
    "wav8": {"subtype": "PCM_U8", "format": "WAV"},
    "float": {"subtype": "FLOAT", "format": "WAV"},
    "flac": {"subtype": "PCM_24"},
    "ogg": {"subtype": "VORBIS"},
    "mp3": {},
}
LOSS = {"wav": 1e-4, "wav24": 1e-6, "wav8": 1e-2, "float": 1e-7, "flac": 1e-6, "ogg": 0.05, "mp3": 0.2}


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", list(FORMATS))
def test_formats_rates_channels(tmp_path: Path, name: str, rate: int, channels: int) -> None:
    path = write_clip(tmp_path / f"clip.{name}", 0.7, rate, channels, **FORMATS[name])
    decoded, _ = soundfile.read(path, dtype="float32", always_2d=True)
    expected = torchaudio.functional.resample(torch.from_numpy(decoded.mean(axis=1)), rate, SAMPLE_RATE)
    found = decode_clip(None, str(path), 6.0)
    if name == "ogg":  # of Vorbis, FFmpeg ends some milliseconds before or behind libvorbis
        assert abs(len(found) - len(expected)) <= 0.06 * SAMPLE_RATE
        common = min(len(found), len(expected)) - 100
        found, expected = found[:common], expected[:common]
    assert torch.allclose(found, expected, atol=1e-6)
    source = torch.from_numpy(chirp(0.7, rate, channels).mean(axis=1))
    length = min(len(source), len(decoded))
    error = (torch.from_numpy(decoded.mean(axis=1))[:length] - source[:length]).abs().max()
    assert error <= LOSS[name], "the reference itself must be the clip that was written"


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 44_101, 96_000])
def test_first_seconds_are_those_of_the_whole_clip(tmp_path: Path, rate: int) -> None:
    path = write_clip(tmp_path / "long.wav", 3.0, rate, subtype="FLOAT")
    whole = decode_clip(None, str(path), 10.0)
    first = decode_clip(None, str(path), 1.0)
    assert len(first) == SAMPLE_RATE
    assert torch.allclose(first, whole[:SAMPLE_RATE], atol=1e-6), "no edge where reading stops"


def test_only_the_needed_seconds_are_read(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "hour.wav", 120.0, 16_000)
    data = path.read_bytes()

    class Counting(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            Counting.count += len(data)
            return data

    assert len(clip.read_clip(Counting(data), 6.0)) == 6 * SAMPLE_RATE
    assert Counting.count < len(data) / 12


@pytest.mark.parametrize("rate", [44_101, 22_051, 191_999])
def test_unusual_rates_sound_as_usual_ones(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another filter with a sharper cut-off: what lies well below it comes out as torchaudio has it."""
    low = sum(torch.sin(2 * torch.pi * hertz * torch.arange(8_000) / 16_000) for hertz in (100, 700, 2_500))
    with monkeypatch.context() as patch:
        patch.setattr(clip, "MAX_KERNEL_ELEMENTS", 0)
        for usual in (8_000, 16_000, 24_000):
            expected = torchaudio.functional.resample(low, usual, SAMPLE_RATE)
            found = resample(low, usual)
            assert len(found) == len(expected)
            assert (found - expected)[500:-500].abs().max() < 5e-3
    # A tone keeps its frequency and its loudness at any rate.
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(rate // 10) / rate)
    result = resample(tone, rate)
    assert len(result) == -(-len(tone) * SAMPLE_RATE // rate)
    middle = torch.arange(500, 1700)
    assert torch.allclose(result[middle], torch.sin(2 * torch.pi * 1000 * middle / SAMPLE_RATE), atol=2e-3)


def test_many_channels(tmp_path: Path) -> None:
    channels = chirp(0.2, 8_000) * np.linspace(0.3, 1, 64, dtype=np.float32) + 0.1 * chirp(0.2, 8_000, 64)
    soundfile.write(tmp_path / "many.wav", channels, 8_000, subtype="FLOAT")
    expected = torch.from_numpy(channels.mean(axis=1))
    found = decode_clip(None, str(tmp_path / "many.wav"), 6.0)
    assert torch.allclose(found, resample(expected, 8_000), atol=1e-6)


def test_embedded_bytes_win_over_the_path(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.flac")
    embedded = decode_clip(path.read_bytes(), "/no/such/file.flac", 6.0)
    assert torch.equal(embedded, decode_clip(None, str(path), 6.0))


def test_remote_clip_is_decoded_through_fsspec(tmp_path: Path) -> None:
    import fsspec

    path = write_clip(tmp_path / "clip.ogg")
    with fsspec.open("memory://clips/clip.ogg", "wb") as file:
        file.write(path.read_bytes())
    remote = decode_clip(None, "memory://clips/clip.ogg", 6.0, places=["memory://clips"])
    assert torch.equal(remote, decode_clip(None, str(path), 6.0))
    with pytest.raises(RowError, match="no such file") as caught:
        decode_clip(None, "memory://clips/none.ogg", 6.0, places=["memory://clips"])
    assert caught.value.kind == "AudioNotFound"


def test_transfer_that_breaks_off_is_no_short_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_clip(tmp_path / "clip.wav", 2.0).read_bytes()

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 50_000:
                raise OSError("connection reset")
            return super().read(min(size or 0, 1000))

    monkeypatch.setattr(decode, "_open_remote", lambda path, places: Broken(data))
    with pytest.raises(RowError, match="connection reset") as caught:
        decode_clip(None, "s3://bucket/clip.wav", 6.0, places=["s3://bucket"])
    assert caught.value.kind == "UnreadableAudio"


def lying_header() -> bytes:
    """A WAV file whose header claims two gigabytes."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((chirp(0.5, 16_000) * 30_000).astype(np.int16).tobytes())
    data = bytearray(buffer.getvalue())
    data[40:44] = (2_000_000_000).to_bytes(4, "little")
    return bytes(data)


def test_header_that_lies_about_its_length() -> None:
    assert len(decode_clip(lying_header(), None, 6.0)) == pytest.approx(0.5 * SAMPLE_RATE, abs=2)


def wav_bytes(samples: np.ndarray, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "EmptyAudio"),
        (b"this is text, not audio" * 100, "UndecodableAudio"),
        (wav_bytes(np.zeros(0)), "EmptyAudio"),
        (wav_bytes(np.array([0.1, np.nan, 0.2])), "InvalidSamples"),
        (wav_bytes(np.array([0.1, np.inf])), "InvalidSamples"),
        (wav_bytes(np.zeros(100), rate=1), "UnsupportedSampleRate"),
        (wav_bytes(np.zeros(100), rate=2_000_000), "UnsupportedSampleRate"),
        (wav_bytes(np.ones(100))[:30], "UndecodableAudio"),
    ],
    ids=["nothing", "text", "no samples", "NaN", "infinity", "1 Hz", "2 MHz", "half a header"],
)
def test_bad_audio(data: bytes, kind: str) -> None:
    with pytest.raises(RowError) as caught:
        decode_clip(data, None, 6.0)
    assert caught.value.kind == kind
    assert "object at 0x" not in str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "secret.wav").write_bytes(b"")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    (tmp_path / "link.wav").symlink_to(tmp_path / "fifo.wav")
    expected = {
        "/dev/zero": "UnreadableAudio",
        "link.wav": "UnreadableAudio",
        "fifo.wav": "UnreadableAudio",
        "folder.wav": "UnreadableAudio",
        "missing.wav": "AudioNotFound",
        "loop.wav": "UnreadableAudio",
        "secret.wav": "EmptyAudio",
        "x" * 300: "UnreadableAudio",
    }
    for name, kind in expected.items():
        with pytest.raises(RowError) as caught:
            decode_clip(None, str(tmp_path / name), 6.0)
        assert caught.value.kind == kind, name
    with pytest.raises(RowError) as caught:
        decode_clip(None, "nosuchscheme://bucket/a.wav", 6.0, places=["nosuchscheme://bucket"])
    assert caught.value.kind == "UnreadableAudio"


def test_a_path_is_quoted_and_its_other_unicode_form_is_told(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Zoé.wav") for form in ("NFC", "NFD"))
    for written, there, form in ((composed, apart, "NFD"), (apart, composed, "NFC")):
        folder = tmp_path / form
        write_clip(folder / there)
        for root in (None, str(tmp_path)):
            with pytest.raises(RowError) as caught:
                decode_clip(None, str(folder / written), 6.0, root)
            assert caught.value.kind == "AudioNotFound"
            assert f"Unicode form {form}: {str(folder / there)!a}" in str(caught.value)
    with pytest.raises(RowError, match=r"no such file: '.*/a\.wav '$"):
        decode_clip(None, str(tmp_path / "a.wav "), 6.0)


def test_audio_root_holds_paths_and_links_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    inside = write_clip(root / "voices" / "a.wav")
    outside = write_clip(tmp_path / "root-not" / "b.wav")
    (root / "link-in.wav").symlink_to(inside)
    (root / "link-out.wav").symlink_to(outside)
    for path in (inside, root / "link-in.wav", root / "voices" / ".." / "voices" / "a.wav"):
        assert len(decode_clip(None, str(path), 6.0, str(root)))
    for path in (outside, root / "link-out.wav", root / ".." / "root-not" / "b.wav", "s3://bucket/a.wav"):
        with pytest.raises(RowError) as caught:
            decode_clip(None, str(path), 6.0, str(root))
        assert caught.value.kind == "AudioOutsideRoot"
    assert len(decode_clip(outside.read_bytes(), str(outside), 6.0, str(root))), (
        "embedded audio opens no path"
    )
    (tmp_path / "root-link").symlink_to(root)
    assert len(decode_clip(None, f"file://{inside}", 6.0, str(tmp_path / "root-link")))


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("s3://bucket/voices/a.wav", True),
        ("s3://bucket/voices/x/a.wav", True),
        ("s3://bucket/voices-2/a.wav", False),
        ("s3://bucket/voices/../secret/a.wav", False),
        ("s3://bucket/voices/./a.wav", False),
        ("s3://bucket/voices//a.wav", False),
        ("s3://bucket/voices", False),
        ("s3://bucket/voices/a.wav?endpoint_override=example.org&scheme=http", False),
        ("gs://bucket/voices/a.wav", False),
        ("file:///voices/a.wav", False),
        ("/voices/a.wav", False),
    ],
)
def test_audio_root_on_an_object_store(path: str, inside: bool) -> None:
    for query in ("", "?region=eu-west-1"):
        root = "s3://bucket/voices" + (query or "/")
        path += query if "?" not in path else ""
        if inside:
            assert decode.contained(path, root) == path
        else:
            with pytest.raises(RowError) as caught:
                decode.contained(path, root)
            assert caught.value.kind == "AudioOutsideRoot"
