"""Clips as people have them: every format, broken headers, silence, odd channels, files of other kinds."""

import io
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import fftconvolve

from clvp.audio.clip import ClipError, read_clip, resample
from tests.pipeline.clips import chirp, encoded

RATE = 22_050
CASES = Path(__file__).parents[1] / "data" / "cases"

FORMATS = {  # name: (codec, container, rate, channels)
    "aac": ("aac", "adts", 44_100, 2),
    "ac3": ("ac3", "ac3", 48_000, 2),
    "alac.m4a": ("alac", "ipod", 44_100, 2),
    "amr": ("libopencore_amrnb", "amr", 8_000, 1),
    "avi": ("libmp3lame", "avi", 44_100, 2),
    "flac.ogg": ("flac", "ogg", 44_100, 2),
    "flv": ("aac", "flv", 44_100, 2),
    "g722.wav": ("g722", "wav", 16_000, 1),
    "m4a": ("aac", "ipod", 44_100, 2),
    "mka": ("pcm_s24le", "matroska", 44_100, 2),
    "mov": ("pcm_s16le", "mov", 44_100, 6),
    "mp2": ("mp2", "mp2", 44_100, 2),
    "mp3": ("libmp3lame", "mp3", 44_100, 2),
    "mp4": ("aac", "mp4", 48_000, 2),
    "opus": ("libopus", "ogg", 48_000, 1),
    "ts": ("aac", "mpegts", 48_000, 2),
    "tta": ("tta", "tta", 44_100, 2),
    "webm": ("libopus", "webm", 48_000, 2),
    "wma": ("wmav2", "asf", 44_100, 2),
    "wv": ("wavpack", "wv", 44_100, 2),
}


def read(data: bytes, seconds: float = 6.0) -> torch.Tensor:
    return read_clip(io.BytesIO(data), seconds)


def refusal(data: bytes) -> ClipError:
    with pytest.raises(ClipError) as caught:
        read(data)
    return caught.value


def wav(samples: np.ndarray, rate: int = RATE, subtype: str = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def similarity(found_N: torch.Tensor, samples_NC: np.ndarray, rate: int) -> float:
    """Normalized correlation with the mix of what was encoded, at the best shift of up to 0.1 s."""
    expected_N = resample(torch.from_numpy(samples_NC.mean(axis=1)), rate)
    products = fftconvolve(found_N, expected_N.flip(0))
    middle = len(expected_N) - 1
    best = products[middle - RATE // 10 : middle + RATE // 10].max()
    return float(best / (found_N.norm() * expected_N.norm()))


# ---- formats ----


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str) -> None:
    codec, container, rate, channels = FORMATS[name]
    samples = np.ascontiguousarray(chirp(1.5, rate, channels, 150.0)[:, :1].repeat(channels, axis=1))
    found = read(encoded(samples, rate, codec, container))
    assert len(found) == pytest.approx(1.5 * RATE, abs=0.06 * RATE)
    assert similarity(found, samples, rate) > (0.9 if name == "amr" else 0.98)


def test_speex() -> None:
    found = read((CASES / "speex.ogg").read_bytes())
    assert len(found) == 6 * RATE
    assert 0.5 < found.abs().max() < 1


def test_the_bytes_decide_and_nothing_else(tmp_path: Path) -> None:
    """Not the name: FFmpeg would guess by it."""
    for name, (codec, container, rate, channels) in FORMATS.items():
        if name in ("mp3", "aac", "m4a", "wma"):
            data = encoded(chirp(0.5, rate, channels), rate, codec, container)
            for suffix in ("wav", "mp3", "flac", "raw", "m3u8"):
                path = tmp_path / f"{name}.{suffix}"
                path.write_bytes(data)
                with path.open("rb") as file:
                    assert torch.equal(read_clip(file, 6.0), read(data))


def test_the_libraries_of_sound_live_in_one_process() -> None:
    """In the other order than here."""
    code = "import torchaudio, soundfile, av, sys; from clvp.audio import clip; "
    code += "print(len(clip.read_clip(open(sys.argv[1], 'rb'), 1)))"
    command = [sys.executable, "-c", code, str(CASES / "speex.ogg")]
    assert subprocess.check_output(command, text=True) == "22050\n"


WITHOUT_AVX512 = """
import ctypes, glob, hashlib, os, sys
import av
library = ctypes.CDLL(glob.glob(os.path.dirname(av.__file__) + ".libs/libavutil*")[0])
if sys.argv[1] == "without":
    library.av_force_cpu_flags(library.av_get_cpu_flags() & ~0x300000)
from clvp.audio.clip import read_clip
for name in sorted(os.listdir(sys.argv[2])):
    with open(os.path.join(sys.argv[2], name), "rb") as file:
        print(name, hashlib.sha256(read_clip(file, 6.0).numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_bits_do_not_depend_on_avx512(tmp_path: Path) -> None:
    for name, (codec, container, rate, channels) in FORMATS.items():
        (tmp_path / name).write_bytes(encoded(chirp(0.5, rate, channels), rate, codec, container))
    with_it, without = (
        subprocess.check_output([sys.executable, "-c", WITHOUT_AVX512, how, str(tmp_path)], text=True)
        for how in ("with", "without")
    )
    assert len(with_it.splitlines()) == len(FORMATS)
    assert with_it == without


# ---- headers that lie ----


def mp3(seconds: float, rate: int = RATE, start_hz: float = 200.0) -> bytes:
    return encoded(chirp(seconds, rate, 1, start_hz), rate, "libmp3lame", "mp3")


def test_concatenated_mp3s_are_read_to_the_end() -> None:
    found = read(mp3(1.0) + mp3(2.5, start_hz=300.0))
    assert len(found) == pytest.approx(3.5 * RATE, abs=0.15 * RATE)
    assert similarity(found[-2 * RATE :], chirp(2.5, RATE, 1, 300.0)[-2 * RATE :], RATE) > 0.98


@pytest.mark.parametrize("frames", [0, 3, 2**31])
def test_a_false_count_of_frames_in_an_mp3(frames: int) -> None:
    data = mp3(2.0)
    place = max(data.find(b"Xing"), data.find(b"Info")) + 8
    assert place > 8
    found = read(data[:place] + frames.to_bytes(4, "big") + data[place + 4 :])
    assert len(found) == pytest.approx(2.0 * RATE, abs=0.1 * RATE)


def test_mp3s_of_two_rates_in_one_are_refused() -> None:
    error = refusal(mp3(1.0) + mp3(1.0, 44_100))
    assert (error.kind, "changes" in str(error)) == ("UndecodableAudio", True)


ID3 = b"ID3\x03\0\0" + bytes([0, 0, 7, 104]) + b"\0" * 1000


@pytest.mark.parametrize(
    "junk",
    [b"\0" * 600, b"\0" * 5000, ID3, ID3 + ID3, b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\n\r\n"],
    ids=["zeros", "many zeros", "ID3", "two ID3", "HTTP"],
)
def test_junk_before_an_mp3(junk: bytes) -> None:
    assert len(read(junk + mp3(2.0))) == pytest.approx(2.0 * RATE, abs=0.1 * RATE)


def test_an_mp3_that_begins_within_a_frame() -> None:
    assert len(read(mp3(2.0)[1111:])) == pytest.approx(2.0 * RATE, abs=0.3 * RATE)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF])
@pytest.mark.parametrize("riff", [0, 0xFFFFFFFF])
def test_a_wav_whose_sizes_are_false(size: int, riff: int) -> None:
    """As programs write it that stream and do not come back to the header."""
    buffer = io.BytesIO()
    samples = (chirp(0.5, RATE) * 30_000).astype(np.int16)
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    data = bytearray(buffer.getvalue())
    data[4:8], data[40:44] = riff.to_bytes(4, "little"), size.to_bytes(4, "little")
    assert torch.equal(read(bytes(data)), torch.from_numpy(samples[:, 0] / np.float32(32_768)))


# ---- silence ----


def test_silence_is_no_voice() -> None:
    dither = np.random.default_rng(0).integers(-2, 3, RATE) / 32_768
    for samples in (np.zeros(RATE), dither, chirp(1.0, RATE) / 2_000, np.zeros(62 * RATE)):
        for data in (wav(samples), wav(samples, subtype="PCM_16")):
            assert refusal(data).kind == "SilentAudio"
    late = np.concatenate([np.zeros(61 * RATE), chirp(1.0, RATE)[:, 0]])
    assert refusal(wav(late, subtype="PCM_16")).kind == "SilentAudio"


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
@pytest.mark.parametrize("noise", [0.0, 5e-4])
def test_of_leading_silence_half_a_second_is_kept(rate: int, noise: float) -> None:
    lead, sound = np.full(7 * rate, noise), chirp(3.0, rate)[rate // 100 :, 0]
    sound[0] = 0.1
    found = read(wav(np.concatenate([lead, sound]), rate))
    assert torch.equal(found, read(wav(np.concatenate([lead[-rate // 2 :], sound]), rate)))
    assert len(found) == pytest.approx(3.49 * RATE, abs=2)


def test_a_clip_that_begins_with_less_silence_keeps_its_bits() -> None:
    for seconds in (0.0, 0.1, 0.499):
        samples = np.concatenate([np.zeros(round(seconds * RATE)), chirp(2.0, RATE)[:, 0]]).astype(np.float32)
        assert torch.equal(read(wav(samples)), torch.from_numpy(samples))


# ---- channels ----


def test_channels_are_averaged() -> None:
    samples = chirp(1.0, RATE, 2)
    assert torch.equal(read(wav(samples)), torch.from_numpy(samples.mean(axis=1, dtype=float)).float())


def test_antiphase_stereo_is_heard() -> None:
    left = chirp(1.0, RATE)
    for gain in (1.0, 0.9):
        assert torch.equal(read(wav(np.hstack([left, -gain * left]))), torch.from_numpy(left[:, 0]))
    speech = read((CASES / "speex.ogg").read_bytes())[:, None].numpy()
    for codec, container in (("aac", "ipod"), ("libmp3lame", "mp3"), ("mp2", "mp2")):
        found = read(encoded(np.hstack([speech, -speech]), RATE, codec, container, 64_000))
        assert similarity(found, speech, RATE) > 0.9, codec


@pytest.mark.parametrize(("channels", "live"), [(2, 0), (2, 1), (6, 2), (8, 7)])
def test_one_live_channel_is_as_loud_as_it_is(channels: int, live: int) -> None:
    """The centre of surround sound, or a microphone on one side."""
    sound = chirp(1.0, RATE)[:, 0]
    samples = np.random.default_rng(0).normal(scale=1e-4, size=(RATE, channels)).astype(np.float32)
    samples[:, live] = sound
    assert torch.allclose(read(wav(samples)), torch.from_numpy(sound), atol=3e-3)


# ---- what is no voice ----


def test_a_few_samples_are_no_voice() -> None:
    for count in (1, 2, 10, RATE // 100, RATE // 20):
        assert refusal(wav(np.full(count, 0.5))).kind == "TooShortAudio"
        assert refusal(wav(np.full(count, 0.5), subtype="PCM_16")).kind == "TooShortAudio"
    click = np.concatenate([np.zeros(2 * RATE), [0.5] * 20])
    assert refusal(wav(click)).kind == "TooShortAudio"
    assert len(read(wav(chirp(0.11, RATE))))


@pytest.mark.parametrize("scale", [100.0, 32_767.0, 8_388_607.0])
def test_integers_written_as_floats(scale: float) -> None:
    error = refusal(wav(chirp(0.5, RATE) * scale))
    assert error.kind == "SamplesOutOfRange"
    assert "32,768" in str(error)
    assert len(read(wav(chirp(0.5, RATE) * 3)))


PICTURES = np.zeros((32, 32, 3), np.uint8)


def video(sound: bool) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        pictures: Any = file.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 32
        audio = file.add_stream("aac", rate=RATE, layout="mono") if sound else None
        for _ in range(10):
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(PICTURES, format="rgb24")))
        file.mux(pictures.encode(None))
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(chirp(1.0, RATE).T.copy(), format="fltp", layout="mono")
            frame.sample_rate = RATE
            file.mux([*audio.encode(frame), *audio.encode(None)])
    return buffer.getvalue()


def test_the_sound_of_a_video() -> None:
    assert len(read(video(sound=True))) == pytest.approx(RATE, abs=0.1 * RATE)
    error = refusal(video(sound=False))
    assert (error.kind, str(error)) == ("NoSound", "QuickTime / MOV video without sound")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html>404</html>", "an HTML page"),
        (b"<HTML>", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (b'{"error": "not found"}', "JSON"),
        (b"PK\3\4" + b"\0" * 100, "a zip archive"),
        (b"\x1f\x8b\x08" + b"\0" * 100, "a gzip archive"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "a PNG image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 100, "a JPEG image"),
        (b"PAR1" + b"\0" * 100, "a Parquet file"),
        (b"\0" * 5000, "bytes are zero"),
        (b"just text", "it begins with b'just text'"),
    ],
)
def test_a_message_says_what_the_file_is(data: bytes, what: str) -> None:
    error = refusal(data)
    assert error.kind == "UndecodableAudio"
    assert what in str(error)


def test_a_file_that_names_others_does_not_open_them(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(chirp(1.0, RATE)))
    path = tmp_path / "a.wav"
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{path}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{path}'\n",
        f"ffconcat version 1.0\nfile 'file:{path}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    ):
        assert refusal(text.encode()).kind == "UndecodableAudio"
