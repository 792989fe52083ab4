from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rows import stored as stored_rows
from pipeline.rows.memory import PIECE_BYTES, PIECE_ROWS
from pipeline.rows.stored import row_batches

GROUP = 700  # rows
TABLE = pa.table(
    {
        "id": [f"row-{i}" for i in range(2 * GROUP)],
        "lists": [[i] * (i % 4) for i in range(2 * GROUP)],
    }
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("parquet") / "m.parquet"
    pq.write_table(TABLE, path, row_group_size=GROUP, data_page_size=500)
    return str(path)


def read(file: str, group: int, begin: int, end: int) -> pa.Table:
    batches = list(row_batches(file, group, ("id", "lists"), begin, end))
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
        expected = TABLE.slice(group * GROUP + begin, end - begin)
        assert read(file, group, begin, end).equals(expected)


def test_rows_that_a_file_holds_in_few_bytes_come_in_small_batches(tmp_path: Path) -> None:
    """As many equal tokens as the most candidates of 64 rows can have are 800 MB of Python objects."""
    tokens = pa.array([83] * (4096 * 100 * PIECE_ROWS), pa.uint16())
    lists = pa.ListArray.from_arrays(pa.array(range(0, len(tokens) + 1, len(tokens) // PIECE_ROWS)), tokens)
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"id": list(map(str, range(PIECE_ROWS))), "lists": lists}), path)
    assert path.stat().st_size < PIECE_BYTES / 10
    batches = list(row_batches(str(path), 0, ("id", "lists"), 0, PIECE_ROWS))
    assert sum(map(len, batches)) == PIECE_ROWS
    assert max(batch.nbytes for batch in batches) <= PIECE_BYTES


def test_ranges_in_ascending_order_decode_a_row_group_once(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = stored_rows.open_rows

    def counting(uri: str) -> object:
        opened.append(uri)
        return original(uri)

    monkeypatch.setattr(stored_rows, "open_rows", counting)
    stored_rows._kept.clear()
    for begin in range(0, GROUP, 70):  # the blocks of one of two processes
        read(file, 0, begin, begin + 35)
    assert len(opened) == 1
    read(file, 0, 0, 5)
    assert len(opened) == 2, "from the beginning again"


def test_large_rows_come_a_few_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    texts = [f"{i}" * (1 << 18) for i in range(100, 200)]
    pq.write_table(pa.table({"id": range(100), "text": texts}), path, use_dictionary=False)
    lengths = [len(batch) for batch in row_batches(str(path), 0, ("id", "text"), 0, 100)]
    assert sum(lengths) == 100
    assert max(lengths) <= 24, "768 KiB a row"
