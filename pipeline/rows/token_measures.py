"""What a CLVP score cannot see of a candidate, from its tokens and its text.

CLVP embeds a whole utterance into one vector: it hears which words are spoken, hardly in what order or how
often. Speech that hangs on one sound, repeats itself, stops early or runs on shows in these numbers instead.

The measures of one candidate need nothing but that candidate, so they are stored with it (`QUALITY_FIELDS`);
the report has what depends on a whole run.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.rows.columns import QUALITY_FIELDS

SECONDS_PER_TOKEN = 1024 / 22_050

NGRAM = 4  # tokens, 0.19 s


def quality_columns(texts: Sequence[str | None], tokens: Sequence[Sequence[np.ndarray]]) -> list[pa.Array]:
    """Arrays of QUALITY_FIELDS for the candidates of all rows, one row after the other.

    `texts` [n] and `tokens` [n]: the text of every row, and its candidates' tokens, each [T] of integers
    below 65,536 without start and stop token. Rows without candidates add nothing.
    """
    candidates = [np.asarray(item) for row in tokens for item in row]
    lengths = np.array([len(item) for item in candidates], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.concatenate([np.zeros(0, np.uint16), *candidates])
    characters = np.repeat([count_characters(text or "") for text in texts], [len(row) for row in tokens])
    columns = [
        longest_runs(flat, offsets),
        repeated_ngram_shares(flat, offsets),
        lengths * SECONDS_PER_TOKEN / characters,
    ]
    fields = zip(columns, QUALITY_FIELDS, strict=True)
    return [pa.array(column.astype(field.type.to_pandas_dtype())) for column, field in fields]


def count_characters(text: str) -> int:
    """Characters that are not white space, at least 1 so that it can be divided by."""
    return max(sum(map(len, text.split())), 1)


def longest_runs(flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int64 [k]: length of the longest run of one token in each sequence flat[offsets[i]:offsets[i + 1]]."""
    longest = np.zeros(len(offsets) - 1, np.int64)
    if len(flat):
        begins = np.ones(len(flat), bool)
        begins[1:] = flat[1:] != flat[:-1]
        begins[offsets[:-1][offsets[:-1] < len(flat)]] = True
        starts = np.flatnonzero(begins)
        lengths = np.diff(starts, append=len(flat))
        np.maximum.at(longest, np.searchsorted(offsets, starts, side="right") - 1, lengths)
    return longest


def repeated_ngram_shares(flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """float64 [k]: share of each sequence's 4-grams that occurred in it before; 0 below 4 tokens.

    This is seq-rep-4 of Welleck et al., Neural Text Generation With Unlikelihood Training (2020): one minus
    the number of distinct 4-grams over the number of 4-grams.
    """
    counts = np.maximum(np.diff(offsets) - NGRAM + 1, 0)
    repeats = np.zeros(len(counts), np.int64)
    bits = max(int(flat.max(initial=0)).bit_length(), 1)
    # An n-gram and the number of its sequence make one 64-bit key, for as many sequences as fit; equal keys
    # are neighbours once sorted.
    at_once = 1 << (64 - NGRAM * bits)
    for begin in range(0, len(counts), at_once):
        part = slice(begin, begin + at_once)
        owners = np.repeat(np.arange(len(counts[part])), counts[part])
        skipped = offsets[:-1][part] - (np.cumsum(counts[part]) - counts[part])
        positions = np.arange(len(owners)) + skipped[owners]
        keys = owners.astype(np.uint64)
        for i in range(NGRAM):
            keys = (keys << np.uint64(bits)) | flat[positions + i].astype(np.uint64)
        keys.sort()
        repeated = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(NGRAM * bits - 1) >> np.uint64(1)
        repeats[part] = np.bincount(repeated.astype(np.int64), minlength=len(counts[part]))
    return repeats / np.maximum(counts, 1)
