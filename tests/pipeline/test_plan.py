import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RowError
from pipeline.rows import columns
from pipeline.rows import plan as planning
from pipeline.rows.manifest import GROUP, Manifest, open_manifest
from pipeline.rows.normalise import RowIndex, scan
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import make_plan, rejected_rows, select_rows
from pipeline.rows.read import read_block
from tests.pipeline.clips import NO_IDS, write_jsonl


def index_of(ids: list[str | None], num_bytes: int | list[int] = 100) -> RowIndex:
    """Each row is a row group of its own."""
    groups = np.zeros(len(ids), GROUP)
    groups["first"] = np.arange(len(ids))
    groups["num_bytes"] = num_bytes
    problems = {i: RowError("MissingId", "none") for i, row_id in enumerate(ids) if row_id is None}
    digests = np.zeros(len(ids), np.uint64)
    return RowIndex(pa.chunked_array([ids[:3], ids[3:]], pa.large_string()), digests, groups, problems)


@given(
    ids=st.lists(st.one_of(st.none(), st.sampled_from("abcdefgh")), min_size=1, max_size=30),
    done=st.sets(st.sampled_from("abcdxyz")),
    hashes=st.sampled_from([1, 2, 1000]),
)
@settings(deadline=None)
def test_every_row_has_exactly_one_fate(ids: list[str | None], done: set[str], hashes: int) -> None:
    """Also where ids that are not equal have equal hashes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "hash", lambda value: ord(value or "0") % hashes, raising=False)
        check_fates(ids, done)


def check_fates(ids: list[str | None], done: set[str]) -> None:
    selection = select_rows(index_of(ids), pa.chunked_array([sorted(done)], pa.large_string()))
    fates = [selection.todo, selection.done, selection.repeated, selection.unusable]
    assert sorted(np.concatenate(fates).tolist()) == list(range(len(ids)))
    assert [ids[i] for i in selection.unusable] == [None] * ids.count(None)
    chosen = [ids[i] for i in [*selection.todo, *selection.done]]
    assert sorted(chosen) == sorted(set(ids) - {None}), "each id once"
    assert {ids[i] for i in selection.done} == set(ids) & done
    assert all(ids.index(ids[i]) == i for i in [*selection.todo, *selection.done]), (
        "the first occurrence counts"
    )


@given(
    num_bytes=st.lists(st.integers(1, 500), min_size=1, max_size=60),
    rows_per_block=st.integers(1, 9),
    data=st.data(),
)
@settings(max_examples=60)
def test_blocks_hold_every_row_once_and_in_order(
    num_bytes: list[int], rows_per_block: int, data: st.DataObject
) -> None:
    count = len(num_bytes)
    index = index_of([str(i) for i in range(count)], num_bytes)
    todo = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "MAX_BLOCK_BYTES", 300)
        plan = make_plan(index, todo, rows_per_block)
    planned = []
    for number in range(plan.num_blocks):
        slices = plan.slices_of(number).to_pylist()
        assert {part["name"] for part in slices} == {plan.names[number]}
        rows = [row for part in slices for row in range(part["begin"] + 1, part["end"] + 1)]
        assert 1 <= len(rows) <= rows_per_block
        # One row may be over the limit, and a block may pass it with its last row.
        assert sum(min(num_bytes[row - 1], 300) for row in rows[:-1]) <= 300 or rows_per_block == 1
        follow = [a["end"] == b["begin"] for a, b in pairwise(slices)]
        assert not any(follow), "rows that follow each other are read together"
        planned += rows
    assert planned == [position + 1 for position in todo]


def test_equal_rows_make_equal_blocks() -> None:
    plan = make_plan(index_of([str(i) for i in range(20)]), np.arange(20), 8)
    assert [(part["begin"], part["end"]) for i in range(3) for part in plan.slices_of(i).to_pylist()] == [
        (0, 8),
        (8, 16),
        (16, 20),
    ]
    assert plan.num_blocks == 3


def test_resumed_rows_are_read_from_between_the_done_ones(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "text": f"text {i}\n", "audio": "a.wav", "n": i} for i in range(60)]
    rng = random.Random(0)
    parquet = tmp_path / "m.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet, row_group_size=13)
    jsonl = write_jsonl(tmp_path / "m.jsonl", rows)
    csv = tmp_path / "m.csv"
    csv.write_text("id,text,audio,n\n" + "".join(f'{r["id"]},"{r["text"]}",a.wav,{r["n"]}\n\n' for r in rows))
    for file in (parquet, jsonl, csv):
        manifest, index = scan(open_manifest([str(file)], AUDIO_PAYLOAD))
        for left in (1, 7, 30, 60):
            todo = sorted(rng.sample(range(60), left))
            done = pa.chunked_array([[f"r{i}" for i in range(60) if i not in todo]], pa.large_string())
            plan = make_plan(index, select_rows(index, done).todo, 8)
            blocks = [read_block(manifest, plan.slices_of(i)) for i in range(plan.num_blocks)]
            table = pa.concat_tables(blocks)
            assert table["id"].to_pylist() == [f"r{i}" for i in todo]
            assert table["text"].to_pylist() == [f"text {i}\n" for i in todo]
            assert [int(n) for n in table["extra.n"].to_pylist()] == todo
            assert table["source"].to_pylist() == [f"{file}, row {i + 1}" for i in todo]


def test_rejected_rows_say_where_they_stand(tmp_path: Path) -> None:
    rows = [{"id": i, "text": "t", "audio": "a"} for i in ("a", "b", "a", None, "b", "c")]
    manifest, index = scan(open_manifest([str(write_jsonl(tmp_path / "m.jsonl", rows))], AUDIO_PAYLOAD))
    selection = select_rows(index, NO_IDS)
    assert isinstance(manifest, Manifest)
    rejected = [
        (row["id"], str(row["source"]).rpartition(", ")[2], row["type"])
        for row in rejected_rows(manifest, index, selection)
    ]
    assert rejected == [
        ("a", "row 3", "DuplicateId"),
        (None, "row 4", "MissingId"),
        ("b", "row 5", "DuplicateId"),
    ]


def test_a_duplicate_is_no_reason_to_keep_its_id_from_the_next_run(tmp_path: Path) -> None:
    """The done ids are those of the output; the rejected rows of one run do not hide rows of another."""
    index = index_of(["a", "a", "b"])
    selection = select_rows(index, pa.chunked_array([["b"]], pa.large_string()))
    assert selection.todo.tolist() == [0]
    assert selection.repeated.tolist() == [1]
