"""Make a corpus of spoken sentences on the spot, from free speech engines.

    python -m examples.voices OUTPUT --sentences 10000 --processes 2

OUTPUT/manifest.jsonl has a line for each sentence of a speaker: id, text, audio (FLAC of 22,050 Hz), speaker,
and the seconds at which its words end. Every speaker says every sentence. Sentence i is the same in every
corpus that is long enough to have it, and none is in held_out.txt or validation.txt. What is there is not
made again.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import soundfile
import soxr

from examples.voices.engines import Spoken, festival, flite
from examples.voices.grammar import distinct, read_grammar

HERE = Path(__file__).parent
SAMPLING_RATE = 22050
CHUNK = 250  # sentences of one call of an engine
SEED = "voices"


class Voice(NamedTuple):
    """A speaker: an engine, and by how much its sound is sped up, which makes another person of it."""

    engine: Callable[[Sequence[str]], Iterator[Spoken]]
    speed: float


VOICES = {
    "slt": Voice(festival, 1.0),
    "low": Voice(festival, 0.84),
    "high": Voice(festival, 1.2),
    "rms": Voice(flite, 1.0),
}


def read_list(name: str) -> list[str]:
    """The sentences of a list beside this file."""
    return (HERE / name).read_text().splitlines()


def speak(texts: Sequence[str], speaker: str) -> Iterator[tuple[Spoken, str]]:
    """Sound at 22,050 Hz and text, but for texts that the engine reads in other words."""
    voice = VOICES[speaker]
    for text, spoken in zip(texts, voice.engine(texts), strict=True):
        if spoken.words == text.split():
            samples = soxr.resample(spoken.samples, spoken.sampling_rate * voice.speed, SAMPLING_RATE)
            yield (
                Spoken(samples, SAMPLING_RATE, spoken.words, [end / voice.speed for end in spoken.word_ends]),
                text,
            )


def make_chunk(output: Path, number: int, texts: Sequence[str], speaker: str) -> list[dict[str, object]]:
    """Write the sound of a chunk of sentences, all by one speaker, and return its lines of the manifest."""
    listing = output / "chunks" / f"{number:05}-{speaker}.json"
    if not listing.exists():
        rows = []
        for index, (spoken, text) in enumerate(speak(texts, speaker)):
            audio = f"audio/{speaker}-{number:05}-{index:03}.flac"
            soundfile.write(output / audio, spoken.samples, SAMPLING_RATE)
            ends = [round(end, 3) for end in spoken.word_ends]
            name = Path(audio).stem
            rows.append(
                {"id": name, "text": f"{text}.", "audio": audio, "speaker": speaker, "word_ends": ends}
            )
        listing.write_text(json.dumps(rows))
    return json.loads(listing.read_text())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write into")
    parser.add_argument("--sentences", type=int, default=10000, help="how many (default: %(default)s)")
    parser.add_argument(
        "--speakers", nargs="+", choices=VOICES, default=["slt", "low", "rms"], help="(default: slt low rms)"
    )
    parser.add_argument("--processes", type=int, default=1, help="engines at work (default: %(default)s)")
    options = parser.parse_args(argv)
    for folder in ("audio", "chunks"):
        (options.output / folder).mkdir(parents=True, exist_ok=True)
    without = {*read_list("held_out.txt"), *read_list("validation.txt")}
    texts = distinct(read_grammar(), options.sentences, SEED, without)
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    with multiprocessing.Pool(options.processes) as pool:
        wanted = [
            (number, chunk, speaker) for number, chunk in enumerate(chunks) for speaker in options.speakers
        ]
        parts = pool.starmap(partial(make_chunk, options.output), wanted, chunksize=1)
    with open(options.output / "manifest.jsonl", "w") as manifest:
        manifest.writelines(json.dumps(row) + "\n" for part in parts for row in part)
    print(f"{sum(map(len, parts))} sentences in {options.output}/manifest.jsonl")


if __name__ == "__main__":
    main()
