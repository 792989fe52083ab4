"""Forecasts from trials of populations whose totals are known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.forecast import Fleet, Forecast, Range, Trial, TrialBlock, forecast, ratio, student_95
from pipeline.stream.envelope import Timing
from pipeline.trial import warm_seconds


def block(rows: int = 10, seconds: dict[str, float] | None = None, failed: int = 0) -> TrialBlock:
    seconds = seconds or {"prepare": 1.0, "sample": 4.0, "rank": 2.0, "write": 0.1}
    return TrialBlock(rows, failed, 16 * rows, 3.0 * rows, 48.0 * rows, 1000.0 * rows, seconds)


def plan(workers: dict[str, float], devices: float = 1, is_gpu: bool = True) -> Forecast:
    return forecast(Trial(1000, [block()] * 5, 7.0), Fleet(workers, devices, is_gpu))


def test_equal_blocks_leave_no_doubt() -> None:
    run = plan({"sample": 1, "rank": 1})
    assert run.limit == "sample"
    # 1000 rows of 0.4 s, 7 s to begin; the first block is prepared before, the last is ranked after that.
    assert run.wall_s.expected == pytest.approx(400 + 7 + 3.1)
    assert (run.wall_s.low, run.wall_s.high) == pytest.approx((run.wall_s.expected, run.wall_s.expected))
    assert run.device_s == run.wall_s
    assert run.candidates.expected == 16_000
    assert run.best_hours.expected == pytest.approx(3000 / 3600)
    assert run.all_hours.expected == pytest.approx(48_000 / 3600)
    assert run.num_bytes.expected == 1e6
    assert run.feeding_cores == pytest.approx(0.11 / 0.4)
    assert {load.name: load.busy for load in run.loads} == pytest.approx(
        {"prepare": 0.25, "sample": 1.0, "rank": 0.5, "write": 0.025}
    )


def test_ten_gpus_take_a_tenth_of_the_time_and_the_same_hours() -> None:
    run = plan({"sample": 10, "rank": 10}, devices=10)
    assert run.wall_s.expected == pytest.approx(40 + 7 + 3.1)
    assert run.device_s.expected == pytest.approx(10 * (40 + 7 + 3.1))
    assert run.feeding_cores == pytest.approx(10 * 0.11 / 0.4)


@pytest.mark.parametrize(
    ("workers", "limit", "seconds_per_row"),
    [
        ({"sample": 4, "rank": 1}, "rank", 0.2),
        ({"sample": 8, "rank": 8, "prepare": 1, "write": 4}, "prepare", 0.1),
    ],
)
def test_the_slowest_stage_decides(workers: dict[str, float], limit: str, seconds_per_row: float) -> None:
    run = plan(workers)
    assert run.limit == limit
    assert run.wall_s.expected == pytest.approx(1000 * seconds_per_row, abs=15)
    assert max(run.loads, key=lambda load: load.busy).name == limit


def test_no_failure_in_a_trial_does_not_promise_none() -> None:
    assert plan({"sample": 1, "rank": 1}).failed == Range(0, 0, pytest.approx(1000 * (1 - 0.05 ** (1 / 50))))
    blocks = [block(failed=failed) for failed in (0, 1, 2, 1)]
    run = forecast(Trial(1000, blocks, 0.0), Fleet({"sample": 1, "rank": 1}, 1, True))
    assert run.failed.expected == 100
    assert 0 < run.failed.low < 100 < run.failed.high


def test_a_single_block_has_no_range() -> None:
    run = forecast(Trial(1000, [block()], 0.0), Fleet({"sample": 1, "rank": 1}, 1, True))
    assert run.wall_s.high == math.inf
    with pytest.raises(ValueError, match="without blocks"):
        forecast(Trial(1000, [], 0.0), Fleet({"sample": 1}, 1, True))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10)
def test_nine_of_ten_ranges_hold_the_truth(seed: int) -> None:
    """Blocks of different size and cost; with ten of them Student's interval is a good approximation."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(20, 40, 2000)
    amounts = rows * generator.normal(3, 0.5, 2000)
    truth = amounts.sum() / rows.sum()
    hits = 0
    for _ in range(400):
        chosen = generator.choice(2000, 10, replace=False)
        found = ratio(amounts[chosen].tolist(), rows[chosen].tolist())
        hits += found.low <= truth <= found.high
    assert 0.83 < hits / 400 < 0.96


def test_students_quantiles() -> None:
    table = {1: 6.3138, 2: 2.9200, 3: 2.3534, 5: 2.0150, 10: 1.8125, 30: 1.6973, 1000: 1.6464}
    assert {freedom: student_95(freedom) for freedom in table} == pytest.approx(table, rel=0.004)


def test_the_first_block_of_a_worker_is_its_warm_up() -> None:
    blocks = [[Timing("sample", 5.0, "a"), Timing("rank", 3.0, "b")]]
    blocks += [[Timing("sample", 1.0, "a"), Timing("rank", 2.0, "b")]]
    blocks += [[Timing("sample", 1.0, "a"), Timing("rank", 2.0, "c")]]
    assert warm_seconds(blocks) == [
        {"rank": 3.0},  # its worker had two only
        {"sample": 1.0, "rank": 2.0},
        {"sample": 1.0, "rank": 2.0},
    ]
