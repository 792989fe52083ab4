"""What a CLVP score cannot see of a candidate, from its tokens and its text.

CLVP embeds a whole utterance into one vector: it hears which words are spoken, hardly in what order or how
often. Speech that hangs on one sound, repeats itself, stops early or runs on shows in these numbers instead.

The measures of one candidate need nothing but that candidate, so they are stored with it (`QUALITY_FIELDS`).
Whether a duration is *unusual* depends on the whole run: `duration_z` is computed over a finished output,
within bands of text length, since short texts are spoken at very different rates and long ones are not.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

SECONDS_PER_TOKEN = 1024 / 22_050

# Columns of the candidate struct, in this order.
QUALITY_FIELDS = (
    pa.field("longest_run", pa.int32()),  # tokens, of the longest run of one token
    pa.field("repeated_ngrams", pa.float32()),  # share of 4-grams that occurred before in the candidate
    pa.field("seconds_per_character", pa.float32()),  # of the text, white space not counted
)

NGRAM = 4  # tokens, 0.19 s

# Tortoise takes more than 8 silent tokens in a row (0.37 s) for the end of the speech and cuts there.
LONG_RUN = 9
REPEATED_SHARE = 0.2  # a fifth of the speech was heard before
# Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993): |z| above 3.5 is an outlier.
OUTLIER_Z = 3.5
BANDS_PER_OCTAVE = 2  # of text length, within which durations are compared


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
    return [
        pa.array(c.astype(f.type.to_pandas_dtype())) for c, f in zip(columns, QUALITY_FIELDS, strict=True)
    ]


def count_characters(text: str) -> int:
    """Characters that are not white space, at least 1 so that it can be divided by."""
    return max(sum(map(len, text.split())), 1)


def longest_runs(flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int64 [k]: length of the longest run of one token in each sequence flat[offsets[i]:offsets[i + 1]]."""
    flat, offsets = _from_zero(flat, offsets)
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
    flat, offsets = _from_zero(flat, offsets)
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


def token_flags(
    finished: np.ndarray, num_tokens: np.ndarray, longest_run: np.ndarray, repeated_ngrams: np.ndarray
) -> dict[str, np.ndarray]:
    """Which candidates [k] deserve a look, whatever the rest of the run is like; bool [k] by name."""
    return {
        "unfinished": ~finished,
        "empty": num_tokens == 0,
        "long_run": longest_run >= LONG_RUN,
        "repeated": repeated_ngrams >= REPEATED_SHARE,
    }


def length_bands(characters: np.ndarray) -> np.ndarray:
    """int64 [k]: band b holds the texts of 2**(b / 2) up to 2**((b + 1) / 2) characters."""
    return np.floor(BANDS_PER_OCTAVE * np.log2(characters)).astype(np.int64)


def robust_z(values: np.ndarray) -> np.ndarray:
    """Modified z-scores [k] of Iglewicz and Hoaglin (1993): distance from the median in robust deviations."""
    if not len(values):
        return np.zeros(0)
    center = float(np.median(values))
    distances = np.abs(values - center)
    return z_scores(values, center, robust_deviation(float(np.median(distances)), float(distances.mean())))


def robust_deviation(median_distance: float, mean_distance: float) -> float:
    """The standard deviation of normal data with these median and mean distances from the median.

    The mean distance stands in where over half of the values are equal and the median distance is zero.
    """
    return median_distance / 0.674_490 if median_distance > 0 else mean_distance * 1.253_314


def z_scores(values: np.ndarray, center: float, deviation: float) -> np.ndarray:
    """Distances from the center in deviations; all zero where the data do not vary."""
    return (values - center) / deviation if deviation > 0 else np.zeros(len(values))


def _from_zero(flat: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same sequences without what lies before the first and behind the last."""
    return flat[offsets[0] : offsets[-1]], offsets - offsets[0]
