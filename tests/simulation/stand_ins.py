"""Stages that answer at once, or after a given time, with columns like those of the real ones.

They run in Ray's workers, which import this module: its folder's root must be on their PYTHONPATH.
"""

import time

import numpy as np
import pyarrow as pa

from pipeline.rows.columns import (
    CANDIDATE_TYPE,
    CANDIDATES,
    ENGINE,
    TOKENS_PER_SECOND,
    VOICE_KEY,
    offsets_of,
    set_columns,
)
from pipeline.rows.payloads import SAMPLED_TYPE, SPEECH_IDS
from pipeline.stages.sound import VOICE

MEAN_TOKENS, SPREAD, MOST = 250, 70, 500
MEL_BYTES = 80 * 517 * 4  # of 6 s of audio


class StandInAudio:
    """In the place of AudioToMels: log-mels of `voices` clips a block, without reading a file."""

    def __init__(self, voices: int) -> None:
        self.voices = voices

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = np.arange(len(table)) * self.voices // max(len(table), 1)
        mels = [np.full(MEL_BYTES, voice, np.uint8).tobytes() for voice in range(self.voices)]
        column = pa.DictionaryArray.from_arrays(
            pa.array(rows.astype(np.int32)), pa.array(mels, pa.large_binary())
        )
        keys = pa.array([f"{voice:032x}" for voice in rows], pa.string())
        return set_columns(table, {VOICE_KEY: keys, VOICE: column})


class StandInSampler:
    """In the place of Sampler: `seconds` of waiting a block, then random tokens of plausible number."""

    def __init__(self, seconds: float, candidates: int) -> None:
        self.seconds, self.candidates = seconds, candidates
        self.random = np.random.default_rng()

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(self.seconds)
        count = len(table) * self.candidates
        lengths = np.clip(self.random.normal(MEAN_TOKENS, SPREAD, count), 1, MOST).astype(np.int64)
        tokens = pa.array(self.random.integers(0, 8192, lengths.sum()).astype(np.uint16))
        values = pa.StructArray.from_arrays(
            [
                pa.array(np.tile(np.arange(self.candidates, dtype=np.int16), len(table))),
                pa.array(lengths < MOST),
                pa.ListArray.from_arrays(offsets_of(lengths), tokens),
            ],
            fields=list(SAMPLED_TYPE),
        )
        speech = pa.ListArray.from_arrays(offsets_of([self.candidates] * len(table)), values)
        engine = pa.array(['{"kind": "stand-in"}'] * len(table))
        return set_columns(table, {SPEECH_IDS: speech, ENGINE: engine})


class StandInRanker:
    """In the place of Ranker: the candidates as they come, with random scores and measures."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.random = np.random.default_rng()

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(self.seconds)
        speech = table["speech_ids"].combine_chunks()
        sampled = speech.flatten()
        lengths = sampled.field("speech_ids").value_lengths()
        count = len(sampled)
        per_row = count // max(len(table), 1)
        known = {
            "rank": pa.array(np.tile(np.arange(1, per_row + 1, dtype=np.int16), len(table))),
            "candidate": sampled.field("candidate"),
            "score": pa.array(self.random.normal(12, 2.5, count).astype(np.float32)),
            "speech_ids": sampled.field("speech_ids"),
            "num_tokens": lengths,
            "finished": sampled.field("finished"),
            "duration_s": pa.array((lengths.to_numpy() / TOKENS_PER_SECOND).astype(np.float32)),
            "longest_run": pa.array(self.random.integers(1, 9, count).astype(np.int32)),
            "repeated_ngrams": pa.array(self.random.random(count).astype(np.float32)),
            "seconds_per_character": pa.array(self.random.random(count).astype(np.float32)),
        }
        fields = list(CANDIDATE_TYPE)
        values = pa.StructArray.from_arrays([known[field.name] for field in fields], fields=fields)
        candidates = pa.ListArray.from_arrays(speech.offsets, values)
        return set_columns(table, {CANDIDATES: candidates})
