"""How many words are understood: of the teacher, of the codec, and of a run's candidates, by what chooses.

    python -m examples.voices.evaluate ask --corpus corpus --codec runs/codec --model MODEL
    python -m jobs.synthesize --manifest corpus/held_out.jsonl --output held --model MODEL \\
        --num-candidates 16 --audio all --measure transcribe similarity
    python -m jobs.report --output held
    python -m examples.voices.evaluate table --corpus corpus --run held

Each held-out sentence is spoken by its teacher and sent through the codec, and a recognizer listens. The
manifest asks for the same sentences in the voice of one clip of the speaker, the first of the corpus. The
tables: words wrong of all words, with 95% intervals over the sentences, and the likeness of the best
candidate's voice to each speaker's clip (cosines of Resemblyzer's embeddings).
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch

from clvp.audio.mel import SAMPLING_RATE, log_mel
from clvp.codec import SpeechCodec
from clvp.quality import at_16_khz
from clvp.quality.similarity import Similarity
from clvp.quality.transcribe import Transcribe
from clvp.training.codec import trained_encoder
from examples.voices.__main__ import read_list, speak

SPEAKERS = ("slt", "low", "rms")
MANIFEST, HEARD = "held_out.jsonl", "heard.jsonl"
CHOOSERS = {
    "one random candidate": "chance",
    "best by CLVP": "clvp",
    "best by mean log-probability": "log_probability",
    "best by both": "both",
    "best by an oracle": "oracle",
}
Z = 1.96


def mel_of(samples: np.ndarray) -> torch.Tensor:
    """[80, T]."""
    return log_mel(torch.from_numpy(samples)[None])[0]


def heard(options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """For each sentence a line of the manifest, and what is heard of the teacher and of the codec."""
    codec = SpeechCodec.from_pretrained(options.model)
    encoder = trained_encoder(codec.config, options.codec)
    transcribe = Transcribe(options.recognizer)
    rows = map(json.loads, reversed((options.corpus / "manifest.jsonl").read_text().splitlines()))
    audio = {row["speaker"]: row["audio"] for row in rows}  # the first of each is the last seen
    voices = {
        name: codec.voice_of([mel_of(soundfile.read(options.corpus / audio[name], dtype="float32")[0])])
        for name in SPEAKERS
    }
    nothing = np.zeros(0, dtype=np.float32)
    for index, text in enumerate(read_list(options.sentences)):
        turns = (*SPEAKERS[index % len(SPEAKERS) :], *SPEAKERS)
        # The first who reads it as it is written.
        speaker, spoken = next((name, each) for name in turns for each, _ in speak([text], name))
        voice = voices[speaker]
        (again,) = codec.decode([encoder.encode(mel_of(spoken.samples), voice)], voice)
        yield (
            {"id": f"{index:03}", "text": f"{text}.", "audio": audio[speaker], "speaker": speaker},
            {
                "teacher": transcribe(spoken.samples, SAMPLING_RATE, text, nothing),
                "codec": transcribe(again.numpy(), SAMPLING_RATE, text, nothing),
            },
        )


def rate(found: Sequence[dict[str, Any]]) -> str:
    """Words wrong of all words."""
    words = np.array([each["words"] for each in found])
    wrong = np.array([each["wer"] for each in found]) * words
    share = wrong.sum() / words.sum()
    # A ratio's variance by the delta method, as in the report.
    within = Z * np.sqrt(((wrong - share * words) ** 2).sum() * len(words) / (len(words) - 1)) / words.sum()
    return shown(share, within)


def shown(share: float, within: float) -> str:
    return f"{share:6.1%}   ({share - within:.1%} to {share + within:.1%})"


def likeness(corpus: Path, run: Path) -> Iterator[str]:
    """A line for each speaker."""
    asked = {row["id"]: row for row in map(json.loads, (corpus / MANIFEST).read_text().splitlines())}
    similarity = Similarity()

    def embedded(file: Any) -> torch.Tensor:
        samples, sampling_rate = soundfile.read(file, dtype="float32")
        return similarity.embed(at_16_khz(samples, sampling_rate))

    clips = {row["speaker"]: row["audio"] for row in asked.values()}
    voices = torch.stack([embedded(corpus / clips[name]) for name in SPEAKERS])
    stored = pq.read_table(run / "data", columns=["id", "audio"]).to_pylist()
    like: dict[str, list[torch.Tensor]] = {name: [] for name in SPEAKERS}
    for row in stored:
        like[asked[row["id"]]["speaker"]].append(voices @ embedded(BytesIO(row["audio"]["bytes"])))
    for own, (name, found) in enumerate(like.items()):
        cosines = torch.stack(found)
        means = "  ".join(f"{mean:.2f}" for mean in cosines.mean(dim=0))
        nearest = (cosines.argmax(dim=1) == own).float().mean()
        yield f"in the voice of {name:16} {means}   nearest to its own in {nearest:.0%} of {len(found)}"


def ask(options: argparse.Namespace) -> None:
    """Write the manifest and what was heard beside the corpus."""
    torch.set_num_threads(1)
    lines = list(heard(options))
    for name, column in ((MANIFEST, 0), (HEARD, 1)):
        (options.corpus / name).write_text("".join(json.dumps(line[column]) + "\n" for line in lines))
    print(f"{options.corpus / MANIFEST} asks for {len(lines)} sentences")


def table(options: argparse.Namespace) -> None:
    """Print both tables."""
    found = list(map(json.loads, (options.corpus / HEARD).read_text().splitlines()))
    last = json.loads((options.run / "report.json").read_text())["words"][-1]
    print(f"{last['rows']} of {len(found)} sentences, {last['n']} candidates each; words wrong")
    for name, key in {"teacher": "teacher", "resynthesis through the codec": "codec"}.items():
        print(f"{name:32} {rate([line[key] for line in found])}")
    for name, key in CHOOSERS.items():
        print(f"{name:32} {shown(last[key]['rate'], last[key]['within'])}")
    print("likeness of the best candidate to the clips of " + ", ".join(SPEAKERS))
    print("\n".join(likeness(options.corpus, options.run)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=("ask", "table"))
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--codec", type=Path, help="ask: run of the codec, which has its encoder")
    parser.add_argument("--model", type=Path, help="ask: checkpoint folder, which has the codec's decoder")
    parser.add_argument(
        "--sentences", default="held_out.txt", help="ask: list beside this file (%(default)s)"
    )
    parser.add_argument("--recognizer", help="ask: folder of Moonshine (default: the installed package's)")
    parser.add_argument("--run", type=Path, help="table: output of the run, with its report")
    options = parser.parse_args(argv)
    needed = ("codec", "model") if options.action == "ask" else ("run",)
    for name in needed:
        if getattr(options, name) is None:
            parser.error(f"{options.action} needs --{name}")
    (ask if options.action == "ask" else table)(options)


if __name__ == "__main__":
    main()
