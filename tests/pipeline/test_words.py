"""What best-of-N buys in words, against all subsets drawn one by one, and where the figures come from."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.report import write_report
from pipeline.report.words import moments, rate_of
from pipeline.rows.columns import EXTRA_PREFIX
from tests.pipeline.synthetic_output import data_table, make_rows, write_description

MEASURED = pa.struct(
    [
        ("rank", pa.int16()),
        ("candidate", pa.int16()),
        ("mean_log_probability", pa.float64()),
        ("heard", pa.string()),
        ("words", pa.int64()),
        ("wer", pa.float64()),
    ]
)
Row = dict[str, Any]


def measured_rows(count: int, candidates: int, seed: int = 0) -> list[Row]:
    """Rows whose best scores and likeliest tokens have fewer errors on average."""
    random = np.random.default_rng(seed)
    rows = make_rows(count, candidates, seed, prefix=f"c{candidates}")
    for row in rows:
        words = int(random.integers(3, 12))
        for item in row["candidates"]:
            item["finished"] = bool(random.random() < 0.8)
            errors = int(random.integers(0, words))
            item["score"] = float(np.float32(random.normal(10, 2) - errors))
            item |= {"words": words, "wer": errors / words, "heard": "x"}
            item["mean_log_probability"] = float(random.normal(-3, 0.5) - errors / 4)
        row["candidates"].sort(key=lambda item: (not item["finished"], -item["score"]))
        for rank, item in enumerate(row["candidates"], 1):
            item["rank"] = rank
    return rows


def write(output: Path, rows: list[Row], name: str = "a", measured: int | None = None) -> None:
    """The rows with the measures of the first `measured` of their candidates, all by default."""
    column = pa.array([row["candidates"][:measured] for row in rows], pa.list_(MEASURED))
    (output / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(data_table(rows).append_column("measures", column), output / "data" / f"{name}.parquet")


def figures_of(output: Path) -> Any:
    write_report(str(output))
    return json.loads((output / "report.json").read_text())


def brute_force(rows: list[Row], n: int, key: Callable[[Row], Any] | None) -> float:
    """Errors over words, of the first in each subset of n or of any."""

    def expected(row: Row) -> float:
        subsets = list(combinations(row["candidates"], n))
        chosen = [min(s, key=key) for s in subsets] if key else [c for s in subsets for c in s]
        return mean(c["wer"] * c["words"] for c in chosen)

    words = [row["candidates"][0]["words"] for row in rows]
    return sum(map(expected, rows)) / sum(words)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return measured_rows(12, 5)


def spread(rows: list[Row], name: str) -> float:
    return float(np.sqrt(np.mean([np.var([c[name] for c in row["candidates"]]) for row in rows])))


def test_rates_are_means_over_all_subsets(rows: list[Row], tmp_path: Path) -> None:
    write(tmp_path, rows)
    write_description(tmp_path, num_candidates=5)
    points = figures_of(tmp_path)["words"]
    assert [point["n"] for point in points] == [1, 2, 3, 4, 5]
    score, known = (spread(rows, name) for name in ("score", "mean_log_probability"))
    keys: dict[str, Callable[[Row], Any] | None] = {
        "chance": None,
        "clvp": lambda c: (not c["finished"], -c["score"]),
        "ranked": lambda c: c["rank"],
        "log_probability": lambda c: (not c["finished"], -c["mean_log_probability"]),
        "both": lambda c: (not c["finished"], -c["score"] / score - c["mean_log_probability"] / known),
        "oracle": lambda c: c["wer"],
    }
    for point in points:
        assert point["rows"] == len(rows)
        for name, key in keys.items():
            assert point[name]["rate"] == pytest.approx(brute_force(rows, point["n"], key), abs=1e-9), name
    last = points[-1]
    assert last["oracle"]["rate"] < last["clvp"]["rate"] < last["chance"]["rate"]


def test_the_interval_holds_the_rate_of_the_whole_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    words = random.integers(3, 12, 20_000)
    errors = np.sort(
        random.binomial(words[:, None], random.beta(1, 4, (len(words), 1)), (len(words), 4)), axis=1
    )
    truth = errors[:, 0].sum() / words.sum()
    inside, samples = 0, 400
    for _ in range(samples):
        chosen = random.choice(len(words), 100, replace=False)
        found = rate_of({4: moments(errors[chosen], words[chosen])}, 4)
        inside += abs(found["rate"] - truth) <= found["within"]
    assert 0.9 < inside / samples < 0.98


def test_rows_of_which_not_all_candidates_were_measured_are_left_out(rows: list[Row], tmp_path: Path) -> None:
    write(tmp_path, rows)
    write(tmp_path, measured_rows(7, 6), "b", measured=3)
    write(tmp_path, measured_rows(4, 3), "c")
    points = figures_of(tmp_path)["words"]
    assert [point["rows"] for point in points] == [16, 16, 16, 12, 12]


def test_a_row_counts_as_one_where_a_measure_counts_no_words(tmp_path: Path) -> None:
    rows = measured_rows(4, 3)
    for item in (item for row in rows for item in row["candidates"]):
        item["words"] = 0
    write(tmp_path, rows)
    rate = figures_of(tmp_path)["words"][0]["chance"]["rate"]
    assert rate == pytest.approx(mean(c["wer"] for row in rows for c in row["candidates"]))


def test_measures_are_summed_up_by_name(rows: list[Row], tmp_path: Path) -> None:
    write(tmp_path, rows)
    found = {item["name"]: item for item in figures_of(tmp_path)["measures"]}
    assert set(found) == {"mean_log_probability", "words", "wer"}
    every = [c["wer"] for row in rows for c in row["candidates"]]
    assert found["wer"]["count"] == len(every)
    assert found["wer"]["mean"] == pytest.approx(mean(every))
    assert found["wer"]["best_mean"] == pytest.approx(mean(row["candidates"][0]["wer"] for row in rows))


def test_the_page_says_it(rows: list[Row], tmp_path: Path) -> None:
    write(tmp_path, rows)
    figures = figures_of(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Words wrong, best of n" in page
    assert "opacity: 0.15" in page, "the interval is drawn"
    assert "<use" not in page, "a link within a drawing would lead nowhere"
    rate = figures["words"][-1]["clvp"]["rate"]
    assert f"{100 * rate:.1f} %" in page


def test_a_run_without_measures_has_no_words(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(data_table(make_rows(5, 3)), tmp_path / "data" / "a.parquet")
    assert figures_of(tmp_path)["words"] == []
    assert "Words wrong" not in (tmp_path / "report.html").read_text()


def test_parts_that_are_not_published_count(rows: list[Row], tmp_path: Path) -> None:
    column = pa.array([row["candidates"] for row in rows], pa.list_(MEASURED))
    table = data_table(rows).append_column(EXTRA_PREFIX + "measures", column)
    table = table.append_column("source", pa.nulls(len(rows), pa.string()))
    error = pa.struct([("stage", pa.string()), ("type", pa.string()), ("message", pa.string())])
    (tmp_path / "_parts").mkdir()
    pq.write_table(
        table.append_column("error", pa.nulls(len(rows), error)), tmp_path / "_parts" / "a.parquet"
    )
    write_description(tmp_path, num_candidates=5)
    assert len(figures_of(tmp_path)["words"]) == 5
