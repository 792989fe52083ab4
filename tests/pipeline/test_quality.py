"""Quality measures: each against a direct, slow way to compute the same thing."""

from collections.abc import Sequence
from itertools import groupby

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.figures import FLAGS, JUDGED, TABLES
from pipeline.rows import token_measures
from pipeline.rows.columns import QUALITY_FIELDS, TOKENS_PER_SECOND

# Few different tokens, so that runs and repetitions occur; the largest one needs all 16 bits.
SEQUENCES = st.lists(st.lists(st.sampled_from([0, 1, 83, 65_535]), max_size=30), max_size=8)
SMALL_SEQUENCES = st.lists(st.lists(st.integers(0, 2), max_size=40), max_size=12)


def flattened(sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    flat = np.array([token for row in sequences for token in row], np.uint16)
    return flat, np.cumsum([0, *map(len, sequences)])


def longest_run(tokens: Sequence[int]) -> int:
    return max((len(list(group)) for _, group in groupby(tokens)), default=0)


def repeated_share(tokens: Sequence[int]) -> float:
    grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@given(SEQUENCES)
def test_longest_runs(sequences: list[list[int]]) -> None:
    assert token_measures.longest_runs(*flattened(sequences)).tolist() == [
        longest_run(row) for row in sequences
    ]


@given(SEQUENCES | SMALL_SEQUENCES)
def test_repeated_ngrams(sequences: list[list[int]]) -> None:
    expected = [repeated_share(row) for row in sequences]
    assert token_measures.repeated_ngram_shares(*flattened(sequences)) == pytest.approx(expected, abs=1e-12)


def test_repeated_ngrams_of_more_sequences_than_fit_one_sort() -> None:
    random = np.random.default_rng(0)
    sequences = [random.choice([5, 8193], size=random.integers(0, 60)).tolist() for _ in range(700)]
    expected = [repeated_share(row) for row in sequences]
    assert token_measures.repeated_ngram_shares(*flattened(sequences)) == pytest.approx(expected, abs=1e-12)


def test_columns_of_a_block_with_a_row_that_failed() -> None:
    tokens: list[list[np.ndarray]] = [[np.array([1, 1, 1, 2]), np.array([])], [], [np.arange(215)]]
    columns = token_measures.quality_columns(["ab\u00a0 c\nd", None, ""], tokens)
    table = pa.table(columns, schema=pa.schema(list(QUALITY_FIELDS)))
    assert table.to_pylist() == [
        {"longest_run": 3, "repeated_ngrams": 0.0, "seconds_per_character": pytest.approx(1024 / 22_050)},
        {"longest_run": 0, "repeated_ngrams": 0.0, "seconds_per_character": 0.0},
        {
            "longest_run": 1,
            "repeated_ngrams": 0.0,
            "seconds_per_character": pytest.approx(215 * 1024 / 22_050),
        },
    ]


def test_columns_of_nothing() -> None:
    assert [len(column) for column in token_measures.quality_columns([], [])] == [0, 0, 0]
    columns = token_measures.quality_columns([None, "x"], [[], []])
    assert [column.type for column in columns] == [field.type for field in QUALITY_FIELDS]


def test_a_candidate_is_measured_the_same_whatever_is_beside_it() -> None:
    random = np.random.default_rng(1)
    texts = ["one", "two words", "and three words"]
    tokens = [[random.integers(0, 3, random.integers(0, 50)) for _ in range(4)] for _ in texts]
    together = token_measures.quality_columns(texts, tokens)
    alone = [
        token_measures.quality_columns([text], [[item]])
        for text, row in zip(texts, tokens, strict=True)
        for item in row
    ]
    for i, column in enumerate(together):
        assert column.to_pylist() == [single[i][0].as_py() for single in alone]


def test_the_rate_of_tokens_is_that_of_the_pipeline() -> None:
    assert pytest.approx(1, rel=1e-15) == token_measures.SECONDS_PER_TOKEN * TOKENS_PER_SECOND


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 1), ("  \n", 1), ("a b", 2), ("你好 世界", 4), ("a\u2003b\u00a0c", 3), ("…?!", 3)],
)
def test_characters(text: str, count: int) -> None:
    assert token_measures.count_characters(text) == count


def judged(column: str, **columns: Sequence[object]) -> list[object]:
    """A column that the report derives from candidates with these values."""
    table = pa.table({name: np.asarray(values) for name, values in columns.items()})
    with duckdb.connect() as database:
        database.execute(TABLES)
        database.register("batch", table)
        database.execute("insert into candidates by name select * from batch")
        database.execute(JUDGED)
        return [value for (value,) in database.execute(f"select {column} from judged").fetchall()]


def test_flags_at_their_limits() -> None:
    candidates = {
        "finished": [True, False, True],
        "num_tokens": [0, 500, 9],
        "longest_run": [0, 8, 9],
        "repeated_ngrams": [0.2, 0.19, 0.0],
    }
    assert {name: judged(condition, **candidates) for name, condition in FLAGS.items()} == {
        "unfinished": [False, True, False],
        "empty": [True, False, False],
        "long_run": [False, False, True],
        "repeated": [True, False, False],
    }


def test_length_bands_begin_at_powers_of_the_root_of_two() -> None:
    characters = [1, 2, 3, 4, 5, 6, 7, 8, 1 << 20]
    assert judged("band", characters=characters) == [0, 2, 3, 4, 4, 5, 5, 6, 40]


def robust_z(paces: np.ndarray) -> list[object]:
    n = len(paces)
    return judged("duration_z", characters=[1] * n, finished=[True] * n, duration_s=2.0 ** np.asarray(paces))


def test_robust_z_is_that_of_iglewicz_and_hoaglin() -> None:
    values = np.random.default_rng(2).normal(3, 2, 501)
    median = np.median(values)
    expected = 0.6745 * (values - median) / np.median(np.abs(values - median))
    assert robust_z(values) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_robust_z_where_most_values_are_equal() -> None:
    values = np.array([5.0] * 9 + [15.0])
    expected = 10 / (1.253_314 * 1.0)  # the mean distance from the median is 1
    assert robust_z(values) == pytest.approx([0] * 9 + [expected])
    assert robust_z(np.array([4.0, 4.0])) == [0, 0]
    assert robust_z(np.array([4.0])) == [0]


def test_a_band_with_few_candidates_borrows_from_those_beside_it() -> None:
    paces = np.concatenate([np.random.default_rng(3).normal(0, 1, 60), [0.5]])
    characters = np.array([8] * 60 + [12])
    durations = 2.0**paces * characters
    z = judged("duration_z", characters=characters, finished=[True] * 61, duration_s=durations)
    median = np.median(paces)
    assert z[-1] == pytest.approx(0.6745 * (0.5 - median) / np.median(np.abs(paces - median)), rel=1e-3)
