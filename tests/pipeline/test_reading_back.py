"""An output of a run, read with what people read Parquet with: nested candidates come out right in each.

Compared with what Python's own JSON of the rows says, not with what Arrow reads.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.output.folder import OutputFolder
from tests.pipeline.synthetic_output import data_table, make_rows

Row = dict[str, Any]
Reader = Callable[[Path], Iterator[Row]]

ROWS, FILES, CANDIDATES = 60, 3, 4


@pytest.fixture(scope="module")
def written() -> list[Row]:
    return make_rows(ROWS, CANDIDATES)


@pytest.fixture(scope="module")
def output(written: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reading") / "output"
    for number in range(FILES):
        OutputFolder(str(folder)).write_table("data", f"{number}.parquet", data_table(written[number::FILES]))
    # What readers must not pick up.
    OutputFolder(str(folder)).write("_parts", "part.parquet", b"half a file")
    return folder


def with_pandas(output: Path) -> Iterator[Row]:
    pandas = pytest.importorskip("pandas")
    yield from pandas.read_parquet(output / "data").to_dict("records")


def with_polars(output: Path) -> Iterator[Row]:
    polars = pytest.importorskip("polars")
    yield from polars.read_parquet(output / "data" / "*.parquet").iter_rows(named=True)


def with_duckdb(output: Path) -> Iterator[Row]:
    duckdb = pytest.importorskip("duckdb")
    result = duckdb.sql(f"SELECT * FROM '{output}/data/*.parquet'")
    for values in result.fetchall():
        yield dict(zip(result.columns, values, strict=True))


def with_datasets(output: Path) -> Iterator[Row]:
    datasets = pytest.importorskip("datasets")
    cache = output.parent / "cache"
    files = str(output / "data" / "*.parquet")
    yield from datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache))


def with_datasets_streaming(output: Path) -> Iterator[Row]:
    datasets = pytest.importorskip("datasets")
    files = str(output / "data" / "*.parquet")
    yield from datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


@pytest.mark.parametrize(
    "read", [with_pandas, with_polars, with_duckdb, with_datasets, with_datasets_streaming]
)
def test_rows_and_their_candidates_come_back(read: Reader, output: Path, written: list[Row]) -> None:
    rows = {row["id"]: row for row in read(output)}
    assert len(rows) == ROWS
    for row in written:
        found = rows[row["id"]]
        assert (found["text"], found["seed"]) == (row["text"], row["seed"])
        assert [c["rank"] for c in found["candidates"]] == list(range(1, CANDIDATES + 1))
        for candidate, expected in zip(found["candidates"], row["candidates"], strict=True):
            assert np.array_equal(candidate["speech_ids"], expected["speech_ids"])
            assert np.float32(candidate["score"]) == np.float32(expected["score"])
            for name in ("candidate", "num_tokens", "finished"):
                assert candidate[name] == expected[name]


def test_the_best_candidates_are_one_query_away_in_duckdb(output: Path, written: list[Row]) -> None:
    """The query of the README, and one that reads the best candidate of each row alone."""
    duckdb = pytest.importorskip("duckdb")
    files = f"'{output}/data/*.parquet'"
    unnested = duckdb.sql(f"SELECT id, unnest(candidates, recursive := true) FROM {files}")
    assert len(unnested.fetchall()) == ROWS * CANDIDATES
    best = dict(duckdb.sql(f"SELECT id, candidates[1].candidate FROM {files}").fetchall())
    assert best == {row["id"]: row["candidates"][0]["candidate"] for row in written}


def test_polars_reads_scores_without_the_tokens(output: Path, written: list[Row]) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.scan_parquet(output / "data" / "*.parquet").explode("candidates").unnest("candidates")
    scores = frame.select("id", "score").collect()
    assert scores.height == ROWS * CANDIDATES
    expected = sorted(candidate["score"] for row in written for candidate in row["candidates"])
    assert np.allclose(sorted(scores["score"].to_list()), expected)
