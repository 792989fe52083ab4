from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rows import parquet_rows
from pipeline.rows.memory import PIECE_ROWS
from pipeline.rows.parquet_rows import OPEN_READERS, row_batches

GROUP = 700  # rows
TABLE = pa.table(
    {
        "id": [f"row-{i}" for i in range(2 * GROUP)],
        "n": range(2 * GROUP),
        "lists": [[i] * (i % 4) for i in range(2 * GROUP)],
    }
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("parquet") / "m.parquet"
    pq.write_table(TABLE, path, row_group_size=GROUP, data_page_size=500)
    return str(path)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows each batch held, those that were skipped too."""
    counts: list[int] = []
    original = parquet_rows.RowGroup._next

    def counting(self: parquet_rows.RowGroup, at_most: int) -> pa.RecordBatch:
        batch = original(self, at_most)
        counts.append(len(batch))
        return batch

    monkeypatch.setattr(parquet_rows.RowGroup, "_next", counting)
    parquet_rows._kept.clear()
    yield counts
    parquet_rows._kept.clear()


def read(file: str, group: int, begin: int, end: int, columns: tuple[str, ...] = ("id", "lists")) -> pa.Table:
    batches = list(row_batches(file, group, columns, begin, end))
    assert all(0 < len(batch) <= PIECE_ROWS for batch in batches)
    return pa.Table.from_batches(batches)


RANGES = st.tuples(st.integers(0, 1), st.integers(0, GROUP - 1), st.integers(1, 200))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ranges=st.lists(RANGES, min_size=1, max_size=8))
def test_any_order_of_ranges_gives_the_rows_of_the_table(
    file: str, ranges: list[tuple[int, int, int]]
) -> None:
    for group, begin, count in ranges:
        end = min(begin + count, GROUP)
        expected = TABLE.select(["id", "lists"]).slice(group * GROUP + begin, end - begin)
        assert read(file, group, begin, end).equals(expected)
    assert len(parquet_rows._kept) <= OPEN_READERS


def test_ranges_in_ascending_order_decode_a_row_group_once(file: str, decoded: list[int]) -> None:
    for begin in range(0, GROUP, 70):  # the blocks of one of two processes, in two row groups by turns
        for group in (0, 1):
            read(file, group, begin, begin + 35)
    assert sum(decoded) == 2 * (GROUP - 35)
    read(file, 0, 0, 5)
    assert sum(decoded) == 2 * (GROUP - 35) + 5, "from the beginning again"


def test_a_file_that_is_replaced_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(TABLE, path)
    assert read(str(path), 0, 0, 3, ("n",))["n"].to_pylist() == [0, 1, 2]
    pq.write_table(TABLE.slice(100), path)
    assert read(str(path), 0, 3, 5, ("n",))["n"].to_pylist() == [103, 104]


def test_a_batch_is_as_long_as_its_rows_allow(tmp_path: Path, decoded: list[int]) -> None:
    """Short rows, then long ones: the batches shrink."""
    path = tmp_path / "m.parquet"
    texts = ["x"] * 600 + [f"{i}" * (1 << 18) for i in range(100, 200)]
    pq.write_table(pa.table({"id": range(700), "text": texts}), path, use_dictionary=False)
    lengths = [len(batch) for batch in row_batches(str(path), 0, ("id", "text"), 0, 700)]
    assert sum(lengths) == 700
    assert max(lengths) == PIECE_ROWS
    assert lengths[-1] <= 24, "768 KiB a row"
