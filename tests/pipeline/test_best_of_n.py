"""The best-of-N curve against all subsets, drawn one by one."""

from fractions import Fraction
from itertools import combinations
from math import comb
from statistics import mean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report.best_of_n import BestOfN, best_weights

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
    best = BestOfN(by_score_alone)
    kept = [(sorted(row, reverse=True) if by_score_alone else ranked(row))[:keep] for row in rows]
    # In another order than their ranks, which must not matter.
    ranks = [list(range(1, len(row) + 1))[::-1] for row in kept]
    flat = [item for row in kept for item in row[::-1]]
    best.add(
        np.array([len(row) for row in rows]),
        np.array([len(row) for row in kept]),
        np.array([score for score, _ in flat]),
        np.array([rank for row in ranks for rank in row]),
        np.array([finished for _, finished in flat]),
    )
    return best.curve()


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


def test_batches_add_up() -> None:
    rows = [[(float(i * j % 7), True) for j in range(1, 5)] for i in range(1, 9)]
    best = BestOfN()
    for row in rows:
        best.add(
            np.array([4]), np.array([4]), np.array([s for s, _ in row]), np.arange(1, 5), np.ones(4, bool)
        )
    for point in best.curve()["points"]:
        assert point["expected_best_score"] == pytest.approx(brute_force(rows, point["n"])[0])


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


def test_no_rows_and_rows_without_candidates() -> None:
    assert BestOfN().curve() == {"points": [], "rows_by_candidates": []}
    best = BestOfN()
    nothing = np.array([], np.int64)
    best.add(np.array([0, 0]), np.array([0, 0]), nothing.astype(float), nothing, nothing.astype(bool))
    assert best.curve()["points"] == []


def test_weights_are_exact_for_many_candidates() -> None:
    sampled, n_values = 400, [1, 2, 37, 399, 400]
    weights = best_weights(sampled, n_values)
    for row, n in zip(weights, n_values, strict=True):
        exact = [
            float(Fraction(comb(sampled - rank, n - 1), comb(sampled, n))) for rank in range(1, sampled + 1)
        ]
        assert row == pytest.approx(exact, rel=1e-10, abs=1e-300)


def test_very_many_candidates() -> None:
    sampled = 4096
    best = BestOfN()
    scores = np.sort(np.random.default_rng(1).normal(size=sampled))[::-1]
    best.add(
        np.array([sampled]), np.array([sampled]), scores, np.arange(1, sampled + 1), np.ones(sampled, bool)
    )
    points = best.curve()["points"]
    assert [point["n"] for point in points] == list(range(1, sampled + 1))
    values = [point["expected_best_score"] for point in points]
    assert values[0] == pytest.approx(scores.mean())
    assert values[-1] == pytest.approx(scores.max())
    assert np.diff(values).min() > -1e-12  # dot products again
