"""The best-of-N curve against all subsets, drawn one by one."""

import math
from fractions import Fraction
from itertools import combinations
from math import comb
from statistics import mean
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report.best_of_n import SUMS, best_weights
from pipeline.report.best_of_n import curve as curve_of
from pipeline.report.figures import TABLES

Row = list[tuple[float, bool]]  # score and finished of the candidates
ROWS = st.lists(
    st.lists(st.tuples(st.integers(-50, 50).map(float), st.booleans()), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
)


def ranked(row: Row) -> Row:
    return sorted(row, key=lambda item: (not item[1], -item[0]))


def curve(rows: list[Row], keep: int | None = None, by_score_alone: bool = False) -> dict[str, Any]:
    """The curve of rows, of which the best `keep` are stored."""
    kept = [(sorted(row, reverse=True) if by_score_alone else ranked(row))[:keep] for row in rows]
    # In another order than their ranks, which must not matter.
    places = [(number, rank) for number, row in enumerate(kept) for rank in range(len(row), 0, -1)]
    numbers, ranks = np.array(places, int).reshape(-1, 2).T
    scores, finished = np.array([kept[n][rank - 1] for n, rank in places], float).reshape(-1, 2).T
    tables = {
        "rows": {"row": np.arange(len(rows)), "sampled": np.array([len(row) for row in rows])},
        "candidates": {
            "row": numbers,
            "rank": ranks,
            "score": pa.array(scores, from_pandas=True),
            "finished": finished > 0,
        },
    }
    with duckdb.connect() as database:
        database.execute(TABLES)
        for name, columns in tables.items():
            database.register("batch", pa.table(columns))
            database.execute(f"insert into {name} by name select * from batch")
        return curve_of(database.sql(SUMS).to_arrow_table().to_pylist(), by_score_alone)


def brute_force(rows: list[Row], n: int) -> tuple[float, float, float]:
    """Expected highest score, and expected score and finished share of the one ranked first, of n."""
    subsets = [list(combinations(row, n)) for row in rows if len(row) >= n]
    highest = mean(mean(max(score for score, _ in subset) for subset in row) for row in subsets)
    chosen = [[ranked(list(subset))[0] for subset in row] for row in subsets]
    return (
        highest,
        mean(mean(s for s, _ in row) for row in chosen),
        mean(mean(f for _, f in row) for row in chosen),
    )


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_the_curve_is_the_mean_over_all_subsets(rows: list[Row]) -> None:
    points = curve(rows)["points"]
    assert [point["n"] for point in points] == list(range(1, max(map(len, rows)) + 1))
    for point in points:
        got = tuple(
            point[k] for k in ("expected_best_score", "expected_chosen_score", "chosen_finished_share")
        )
        assert got == pytest.approx(brute_force(rows, point["n"]), abs=1e-9)
        assert point["rows"] == sum(len(row) >= point["n"] for row in rows)


def test_where_only_the_best_are_stored_large_n_is_exact_and_small_n_is_left_out() -> None:
    random = np.random.default_rng(0)
    rows = [[(float(random.normal()), bool(random.random() < 0.6)) for _ in range(6)] for _ in range(5)]
    points = curve(rows, keep=4)["points"]
    assert [point["n"] for point in points] == [3, 4, 5, 6]
    for point in points:
        _, chosen, finished = brute_force(rows, point["n"])
        assert point["expected_chosen_score"] == pytest.approx(chosen)
        assert point["chosen_finished_share"] == pytest.approx(finished)
        assert (
            point["expected_best_score"] is None
        )  # an unfinished candidate that is not stored may be higher
    for point in curve(rows, keep=4, by_score_alone=True)["points"]:
        assert point["expected_best_score"] == pytest.approx(brute_force(rows, point["n"])[0])


def test_rows_with_different_numbers_of_candidates_are_said() -> None:
    rows: list[Row] = [[(1.0, True)] * 2, [(2.0, True)] * 4, [(3.0, True)] * 4]
    figures = curve(rows)
    assert figures["rows_by_candidates"] == [
        {"sampled": 2, "stored": 2, "rows": 1},
        {"sampled": 4, "stored": 4, "rows": 2},
    ]
    assert [p["rows"] for p in figures["points"]] == [3, 3, 2, 2]
    # A dot product: its last bit depends on the processor.
    assert [p["expected_best_score"] for p in figures["points"]] == pytest.approx([2, 2, 2.5, 2.5], rel=1e-12)


@pytest.mark.parametrize("rows", [[], [[], []]])
def test_no_rows_and_rows_without_candidates(rows: list[Row]) -> None:
    assert curve(rows) == {"points": [], "rows_by_candidates": [], "n_for_share_of_gain": {}}


def test_a_row_with_a_score_that_is_not_known_is_left_out() -> None:
    points = curve([[(1.0, True), (math.nan, True)], [(2.0, True), (3.0, True)]])["points"]
    assert [(p["rows"], p["expected_best_score"]) for p in points] == [(1, 2.5), (1, 3.0)]


def test_weights_are_exact_for_many_candidates() -> None:
    sampled = 400
    for n in (1, 2, 37, 399, 400):
        exact = [
            float(Fraction(comb(sampled - rank, n - 1), comb(sampled, n))) for rank in range(1, sampled + 1)
        ]
        assert best_weights(sampled, n) == pytest.approx(exact, rel=1e-10, abs=1e-300)


def test_very_many_candidates() -> None:
    sampled = 4096
    scores = np.random.default_rng(1).normal(size=sampled).astype(np.float32)
    points = curve([[(score, True) for score in scores.tolist()]])["points"]
    assert [point["n"] for point in points] == list(range(1, sampled + 1))
    values = [point["expected_best_score"] for point in points]
    assert values[0] == pytest.approx(scores.mean(dtype=float))
    assert values[-1] == pytest.approx(scores.max())
    assert np.diff(values).min() > -1e-12  # dot products again
