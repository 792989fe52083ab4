"""Make the reference clips of the demo: six clips of five speakers, in six different encodings.

The clips in `audio/` were made by this script and are part of the repository; running it again needs the
speech engines of `examples/voices` (`apt-get install festival festvox-us-slt-hts libflite1`):

    python -m examples.demo.make_clips

Every clip has another sample rate, channel count, bit depth or container, because that is what real
reference recordings look like. The voices are those that the demo's model has learned.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from examples.voices.__main__ import speak

AUDIO_DIR = Path(__file__).parent / "audio"


@dataclass(frozen=True)
class Clip:
    file: str
    voice: str  # of examples.voices
    text: str
    sample_rate: int  # Hz
    subtype: str  # soundfile's name of the sample encoding
    stereo: bool = False


CLIPS = [
    Clip("ada_16khz.wav", "slt", "the lesson starts at half past one on thursday", 16_000, "PCM_16"),
    Clip(
        "ben_44khz_stereo.flac",
        "low",
        "the camera and the ticket are behind the chair",
        44_100,
        "PCM_16",
        stereo=True,
    ),
    Clip("cleo_48khz_24bit.wav", "slt", "the market was built in nineteen ninety two", 48_000, "PCM_24"),
    Clip("dan_24khz_1.ogg", "rms", "sunday will be cloudy and dry in the south", 24_000, "VORBIS"),
    Clip(
        "dan_24khz_2.mp3",
        "rms",
        "the moon over the mountain is orange this evening",
        24_000,
        "MPEG_LAYER_III",
    ),
    Clip("eve_8khz.wav", "low", "this phone is too big for my brother", 8_000, "ULAW"),
]


def write_clip(clip: Clip) -> Path:
    """Speak, resample, spread over the channels and encode one clip."""
    ((spoken, _),) = speak([clip.text], clip.voice)
    samples_N = soxr.resample(spoken.samples, spoken.sampling_rate, clip.sample_rate).clip(-1, 1)
    left_of_centre = np.stack([samples_N, 0.6 * samples_N], axis=1)
    path = AUDIO_DIR / clip.file
    soundfile.write(
        path, left_of_centre if clip.stereo else samples_N, clip.sample_rate, subtype=clip.subtype
    )
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
