"""The streaming histogram against numpy on the whole list of numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.histogram import MAX_BINS, Histogram

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


def filled(*batches: np.ndarray, integers: bool = False) -> Histogram:
    histogram = Histogram(integers)
    for batch in batches:
        histogram.add(batch)
    return histogram


@given(st.lists(st.lists(NUMBERS, max_size=20), max_size=5))
def test_counts_sums_and_quantiles_of_any_numbers(batches: list[list[float]]) -> None:
    histogram = filled(*map(np.array, batches))
    values = np.array([value for batch in batches for value in batch])
    assert histogram.count == len(values)
    if len(values):
        assert len(histogram.counts) <= MAX_BINS
        assert (histogram.low, histogram.high) == (values.min(), values.max())
        assert histogram.sum == pytest.approx(values.sum(), rel=1e-9, abs=1e-6)
        for share in (0.0, 0.1, 0.5, 0.9, 1.0):
            ordered = np.sort(values)
            exact = ordered[max(int(np.ceil(share * len(values))) - 1, 0)]
            assert abs(histogram.quantiles([share])[0] - exact) <= histogram.width


def test_every_number_is_in_its_bin() -> None:
    values = np.random.default_rng(0).normal(-7, 3, 5000)
    histogram = filled(values[:100], values[100:])
    edges = (np.arange(len(histogram.counts) + 1) + histogram.first) * histogram.width
    assert histogram.counts.tolist() == np.histogram(values, edges)[0].tolist()
    assert histogram.width < 2 * np.ptp(values) / (MAX_BINS / 2)


def test_batches_and_merges_in_any_order_give_the_same() -> None:
    random = np.random.default_rng(1)
    parts = [random.normal(0, scale, 300) for scale in (1e-3, 1, 1e3)]
    forward, backward = filled(*parts), filled(*parts[::-1])
    merged = Histogram()
    for part in parts:
        merged.merge(filled(part))
    for other in (backward, merged):
        assert (other.first, other.width, other.low, other.high) == (
            forward.first,
            forward.width,
            forward.low,
            forward.high,
        )
        assert other.counts.tolist() == forward.counts.tolist()
        assert other.sum == pytest.approx(forward.sum)


def test_integers_have_exact_quantiles() -> None:
    values = np.random.default_rng(2).integers(0, 500, 999)
    histogram = filled(values, integers=True)
    shares = [0.01, 0.25, 0.5, 0.75, 0.99, 1.0]
    assert histogram.quantiles(shares) == np.quantile(values, shares, method="inverted_cdf").tolist()


@pytest.mark.parametrize("count", [1, 2, 7, 4000])
def test_median_and_distances(count: int) -> None:
    values = np.random.default_rng(3).lognormal(0, 1, count)
    histogram = filled(values)
    distances = np.abs(values - 1.5)
    assert histogram.median() == pytest.approx(np.median(values), abs=histogram.width)
    assert histogram.median_distance(1.5) == pytest.approx(np.median(distances), abs=histogram.width)
    assert histogram.mean_distance(1.5) == pytest.approx(distances.mean(), abs=histogram.width)


def test_numbers_that_are_not_finite_are_counted_apart() -> None:
    histogram = filled(np.array([1.0, np.nan, np.inf, -np.inf]), np.array([]), np.array([np.nan]))
    assert (histogram.count, histogram.not_finite, histogram.mean) == (1, 4, 1.0)


@pytest.mark.parametrize("values", [[1e300, -1e300], [1e15, 1e15 + 1], [5e-324, 1e308], [0.0], [-3.5] * 4])
def test_extreme_numbers(values: list[float]) -> None:
    histogram = filled(np.array(values))
    assert histogram.count == len(values)
    assert min(values) <= histogram.quantiles([0.5])[0] <= max(values)
    assert sum(histogram.bars(64)["counts"]) == len(values)


def test_bars_show_all_or_say_what_they_leave_out() -> None:
    values = np.random.default_rng(4).normal(100, 5, 100_000)
    bars = filled(values).bars(64)
    assert 32 <= len(bars["counts"]) <= 64
    assert (sum(bars["counts"]), bars["below"], bars["above"]) == (len(values), 0, 0)
    edges = bars["low"] + bars["width"] * np.arange(len(bars["counts"]) + 1)
    assert bars["counts"] == np.histogram(values, edges)[0].tolist()

    bars = filled(values, np.array([-1e4, 1e4, 2e4])).bars(64)
    assert len(bars["counts"]) <= 64
    assert bars["below"] >= 1
    assert bars["above"] >= 2
    assert sum(bars["counts"]) + bars["below"] + bars["above"] == len(values) + 3
    assert sum(bars["counts"]) > 0.99 * len(values)
    assert bars["width"] * len(bars["counts"]) < 200
