"""Make the reference clips of the demo: six short clips of five voices, in six different encodings.

The clips in `audio/` were made by this script and are part of the repository; running it again needs
espeak-ng (`apt-get install espeak-ng`), which nothing else in this project needs:

    python examples/demo/make_clips.py

Every clip has another sample rate, channel count, bit depth or container, because that is what real
reference recordings look like. The speech is synthetic, so the clips carry no one's voice and no licence.
"""

import io
import subprocess
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
import torchaudio

AUDIO_DIR = Path(__file__).parent / "audio"


@dataclass(frozen=True)
class Clip:
    file: str
    voice: str  # espeak-ng voice, "+" and a variant
    words_per_minute: int
    pitch: int  # 0..99
    text: str
    sample_rate: int  # Hz
    subtype: str  # soundfile's name of the sample encoding
    stereo: bool = False


CLIPS = [
    Clip(
        "ada_16khz.wav",
        "en-gb+f3",
        165,
        55,
        "The harbour lights went out, one after another.",
        16_000,
        "PCM_16",
    ),
    Clip(
        "ben_44khz_stereo.flac",
        "en-us",
        160,
        42,
        "We planted the orchard in spring.",
        44_100,
        "PCM_16",
        stereo=True,
    ),
    Clip("cleo_48khz_24bit.wav", "en-us+f4", 185, 60, "Nobody expected rain today.", 48_000, "PCM_24"),
    Clip(
        "dan_24khz_1.ogg",
        "en-gb-scotland",
        155,
        38,
        "A train leaves for the coast at noon.",
        24_000,
        "VORBIS",
    ),
    Clip(
        "dan_24khz_2.mp3",
        "en-gb-scotland",
        155,
        38,
        "The old map shows a road across the hills.",
        24_000,
        "MPEG_LAYER_III",
    ),
    Clip("eve_8khz.wav", "en-029+f2", 160, 50, "This line was recorded over a telephone.", 8_000, "ULAW"),
]


def speak(clip: Clip) -> tuple[torch.Tensor, int]:
    """Speak the text of a clip; returns the samples [N] in -1..1 and their rate in Hz."""
    command = ["espeak-ng", "-v", clip.voice, "-s", str(clip.words_per_minute), "-p", str(clip.pitch)]
    spoken = subprocess.run([*command, "--stdout", clip.text], check=True, capture_output=True).stdout
    samples, sample_rate = soundfile.read(io.BytesIO(spoken), dtype="float32")
    return torch.from_numpy(samples), sample_rate


def write_clip(clip: Clip) -> Path:
    """Speak, resample, spread over the channels and encode one clip."""
    samples_N, spoken_rate = speak(clip)
    samples_N = torchaudio.functional.resample(samples_N, spoken_rate, clip.sample_rate)
    channels_NC = samples_N[:, None]
    if clip.stereo:
        channels_NC = torch.stack([samples_N, 0.6 * samples_N], dim=1)  # left of the centre
    path = AUDIO_DIR / clip.file
    soundfile.write(path, channels_NC.clamp(-1, 1).numpy(), clip.sample_rate, subtype=clip.subtype)
    return path


def main() -> None:
    AUDIO_DIR.mkdir(exist_ok=True)
    for clip in CLIPS:
        path = write_clip(clip)
        info = soundfile.info(path)
        print(
            f"{path.name}: {info.samplerate} Hz, {info.channels} channel(s), {info.subtype_info}, "
            f"{info.duration:.1f} s, {path.stat().st_size / 1024:.0f} KB"
        )


if __name__ == "__main__":
    main()
