"""Speech to train on: a manifest is read once into a folder, from which batches are drawn without waiting.

`mels.npy` holds the log-mels of all clips one after the other, `rows.parquet` what is known of each clip, and
`codes.parquet`, once a codec is trained, its speech codes. A batch depends on a seed and the number of the
step alone, so that training goes on after an interruption as if there had been none.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import soxr
import torch
from torch import Tensor

from clvp.assets import ASSETS
from clvp.audio.mel import SAMPLING_RATE, log_mel
from clvp.codec import voice_of
from clvp.text.tokenizer import ClvpTokenizer
from clvp.text.vocabulary import SPACE_TOKEN

CODES_FILE = "codes.parquet"
Rng = np.random.Generator


def piece_ends(pieces: list[str], word_ends: list[float]) -> list[float]:
    """The seconds at which text tokens end that share their word's time evenly.

    A space belongs to the word before it. Empty unless there are as many words.
    """
    spaces = np.array([piece == SPACE_TOKEN for piece in pieces], dtype=int)
    words = np.cumsum(spaces) - spaces
    if len(words) == 0 or words[-1] + 1 != len(word_ends):
        return []
    starts = [0.0, *word_ends]
    ends: list[float] = []
    for word, end in enumerate(word_ends):
        count = int((words == word).sum())
        ends += list(np.linspace(starts[word], end, count + 1)[1:])
    return ends


def features_of(
    row: dict[str, Any], folder: Path, tokenizer: ClvpTokenizer
) -> tuple[np.ndarray, list[int], list[float]]:
    """Of a row of the manifest: log-mels [T, 80], float16; text tokens, and the seconds at which each has
    been said, none where nobody knows.
    """
    samples_NC, rate = soundfile.read(folder / row["audio"], dtype="float32", always_2d=True)
    waveform_N = soxr.resample(samples_NC.mean(axis=1), rate, SAMPLING_RATE)
    mel_T8 = log_mel(torch.from_numpy(waveform_N)[None])[0].T.numpy().astype(np.float16)
    ids = tokenizer(row["text"])["input_ids"]
    ends = piece_ends(tokenizer.convert_ids_to_tokens(ids), row.get("word_ends") or [])
    return mel_T8, ids, ends


def prepare(manifest: Path, folder: Path, processes: int = 1) -> None:
    """Read a manifest of JSON lines (id, text, audio, speaker, perhaps word_ends) into a folder."""
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    tokenizer = ClvpTokenizer.from_pretrained(ASSETS)
    compute = partial(features_of, folder=manifest.parent, tokenizer=tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool:
        mels, text_ids, ends = zip(*pool.map(compute, rows, chunksize=64), strict=True)
    np.save(folder / "mels.npy", np.concatenate(mels))
    table = pa.table(
        {
            **{name: [row[name] for row in rows] for name in ("id", "text", "speaker")},
            "audio": [str((manifest.parent / row["audio"]).resolve()) for row in rows],
            "frames": list(map(len, mels)),
            "text_ids": text_ids,
            "piece_ends": ends,
        }
    )
    pq.write_table(table, folder / "rows.parquet")


class Corpus:
    """The prepared folder. Rows are numbered; the last ones are kept for validation."""

    def __init__(self, folder: Path, validation: int = 256) -> None:
        self.folder = folder
        table = pq.read_table(folder / "rows.parquet")
        self.columns: dict[str, list[Any]] = {
            name: table[name].to_pylist() for name in table.column_names if name != "frames"
        }
        self.frames = table["frames"].to_numpy()
        self.starts = np.concatenate(([0], np.cumsum(self.frames)))
        self.mels = np.load(folder / "mels.npy", mmap_mode="r")
        speakers = np.array(self.columns["speaker"])
        order = np.random.default_rng(0).permutation(len(speakers))
        self.validation, self.training = order[:validation], order[validation:]
        self.space_id = ClvpTokenizer.from_pretrained(ASSETS).convert_tokens_to_ids(SPACE_TOKEN)
        self.of_speaker = {name: self.training[speakers[self.training] == name] for name in set(speakers)}

    def mel(self, row: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """[80, T] float32 log-mels of a row, or a piece of them, the last frame repeated behind its end."""
        first, end = self.starts[row], self.starts[row + 1]
        piece = self.mels[first + start : end if length is None else min(end, first + start + length)]
        if length is not None and len(piece) < length:
            piece = np.concatenate((piece, np.repeat(piece[-1:], length - len(piece), axis=0)))
        return piece.T.astype(np.float32)

    @cached_property
    def voices(self) -> Tensor:
        """[rows, 2, 80] of each row's own clip."""
        return torch.stack([voice_of([torch.from_numpy(self.mel(row))]) for row in range(len(self.frames))])

    def reference(self, row: int, rng: Rng) -> int:
        """Another row of the same speaker."""
        return int(rng.choice(self.of_speaker[self.columns["speaker"][row]]))

    @cached_property
    def codes(self) -> list[np.ndarray]:
        """Speech codes of each row."""
        column = pq.read_table(self.folder / CODES_FILE)["codes"]
        return [np.asarray(codes, dtype=np.int64) for codes in column.to_pylist()]

    def fitting(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of at most so many codes: those of training and those of validation."""
        fits = np.array([len(codes) <= longest for codes in self.codes])
        return self.training[fits[self.training]], self.validation[fits[self.validation]]

    def silence(self) -> int:
        """The code in which speech ends most often; 0 before there are codes."""
        if not (self.folder / CODES_FILE).exists():
            return 0
        return int(np.bincount([codes[-1] for codes in self.codes]).argmax())
