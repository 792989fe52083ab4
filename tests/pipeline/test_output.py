"""Parts, publishing, and what is left after a run that ended anywhere."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import RowError, RunError, error_record
from pipeline.output.folder import OutputFolder
from pipeline.output.publish import (
    Files,
    Recovered,
    forget_failures,
    forget_rows,
    past_attempts,
    publish,
    publish_rejected,
    recover,
)
from pipeline.rows.columns import CANDIDATE_TYPE
from pipeline.rows.manifest import open_manifest, shared
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import block_name, make_plan
from pipeline.rows.read import read_block
from pipeline.rows.scan import scan
from pipeline.stages.write import INPUT, REPORT, SAMPLED, BlockWriter
from tests.pipeline.clips import write_jsonl
from tests.s3_server import S3Server

ENGINE = '{"device": "cpu"}'


def candidate(rank: int, tokens: Sequence[int]) -> dict[str, Any]:
    return {
        "rank": rank,
        "candidate": 10 - rank,
        "score": 1.0 / rank,
        "speech_ids": list(tokens),
        "num_tokens": len(tokens),
        "finished": rank != 2,
        "duration_s": len(tokens) / 21.5,
    }


def block(ids: Sequence[str], failed: Sequence[str] = (), extra: bool = True) -> pa.Table:
    """A block as it comes from the ranker: two candidates of a good row."""
    error = {"stage": "audio", "type": "AudioNotFound", "message": "no such file"}
    columns: dict[str, Any] = {
        "id": list(ids),
        "text": [f"text of {row_id}" for row_id in ids],
        "candidates": [
            None if row_id in failed else [candidate(1, [1, 2, 65_535]), candidate(2, [])] for row_id in ids
        ],
        "voice_key": [None if row_id in failed else "ab" for row_id in ids],
        "engine": [None if row_id in failed else ENGINE for row_id in ids],
        "source": [f"m.csv, row {i + 1}" for i in range(len(ids))],
        "row_digest": [0] * len(ids),
        "error": [error if row_id in failed else None for row_id in ids],
    }
    schema = pa.schema([*INPUT, *SAMPLED])
    if extra:
        columns |= {"extra.speaker": [f"s{row_id}" for row_id in ids], "extra.n": list(range(len(ids)))}
        schema = schema.append(pa.field("extra.speaker", pa.string())).append(pa.field("extra.n", pa.int16()))
    return pa.Table.from_pydict(columns, schema=schema)


def write(output: OutputFolder, ids: Sequence[str], failed: Sequence[str] = ()) -> dict[str, Any]:
    return BlockWriter(output, seed=7)(block(ids, failed)).to_pylist()[0]


def stored(output: OutputFolder, folder: str) -> list[str]:
    tables = [output.read_table(folder, name) for name in output.parquet_files(folder)]
    return [row_id for table in tables for row_id in table["id"].to_pylist()]


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> OutputFolder:
    if request.param == "local":
        return OutputFolder(str(tmp_path / "out"))
    server: S3Server = request.getfixturevalue("s3")
    return OutputFolder(server.uri(tmp_path.name))


@pytest.fixture
def local(tmp_path: Path) -> OutputFolder:
    return OutputFolder(str(tmp_path / "out"))


def test_report_of_a_block(local: OutputFolder) -> None:
    table = BlockWriter(local, 7)(block(["a", "b", "c"], failed=["b"]))
    assert table.schema == REPORT
    report = table.to_pylist()[0]
    size = os.path.getsize(local.file("_parts", report.pop("part")))
    assert report == {
        **{"num_bytes": size, "rows": 2, "failed": 1, "candidates": 4, "tokens": 6, "unfinished": 2},
        **{"best_s": pytest.approx(6 / 21.5), "best_score": 1.0},
        "engine": ENGINE,
    }


def test_copies_of_a_manifest_lie_where_all_nodes_read_them(output: OutputFolder, tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "text": f"text {i}", "audio": "a.wav"} for i in range(5)]
    files = [str(write_jsonl(tmp_path / name, part)) for name, part in (("a", rows[:2]), ("b", rows[2:]))]
    files = [shutil.move(file, file + ".jsonl") for file in files]
    manifest, index = scan(open_manifest(files, AUDIO_PAYLOAD))
    plan = make_plan(index, np.array([3, 4]), 2)
    with shared(manifest, output.folder("_manifest"), [1]) as there:
        assert index.copies is not None
        index.copies.cleanup()  # what lies on the driver's machine alone
        assert len(output.parquet_files("_manifest")) == 1, "what is not needed is not copied"
        assert read_block(there, plan.slices_of(0))["text"].to_pylist() == ["text 3", "text 4"]
    assert output.parquet_files("_manifest") == []


def test_a_block_written_twice_replaces_itself(output: OutputFolder) -> None:
    assert write(output, ["a", "b"], ["b"])["part"] == write(output, ["a", "b"])["part"]
    assert write(output, ["a"])["part"] != write(output, ["b"])["part"]
    assert len(output.parquet_files("_parts")) == 3


def test_publish_and_read_back(output: OutputFolder) -> None:
    parts = [write(output, ["b", "a"], ["a"])["part"], write(output, ["c", "d"])["part"]]
    publish(Files(output), parts)
    assert output.parquet_files("_parts") == []
    (data,) = (output.read_table("data", name) for name in output.parquet_files("data"))
    (errors,) = (output.read_table("errors", name) for name in output.parquet_files("errors"))
    assert data.schema.names == [
        "id",
        "text",
        "speaker",
        "n",
        "seed",
        "voice_key",
        "row_digest",
        "candidates",
    ]
    assert data.schema.field("candidates").type == pa.list_(CANDIDATE_TYPE)
    assert data.schema.field("n").type == pa.int16()
    row = data.to_pylist()[0]
    assert row["id"] == "b"
    assert row["speaker"] == "sb"
    assert row["seed"] == 7
    assert [c["rank"] for c in row["candidates"]] == [1, 2]
    assert row["candidates"][0]["speech_ids"] == [1, 2, 65_535]
    assert errors.to_pylist() == [
        {
            "id": "a",
            "source": "m.csv, row 2",
            "row_digest": 0,
            "attempt": 1,
            "stage": "audio",
            "type": "AudioNotFound",
            "message": "no such file",
        }
    ]


def test_common_readers(local: OutputFolder) -> None:
    publish(Files(local), [write(local, ["a", "b"])["part"]])
    publish(Files(local), [write(local, ["c"])["part"]])
    pattern = f"{local.uri}/data/*.parquet"
    rows = duckdb.sql(
        f"select id, c.rank, len(c.speech_ids) from (select id, unnest(candidates) c from '{pattern}')"
    )
    assert sorted(rows.fetchall()) == [(i, r, 3 if r == 1 else 0) for i in "abc" for r in (1, 2)]
    frame = polars.read_parquet(pattern).explode("candidates").unnest("candidates")
    assert frame.select("speech_ids").explode("speech_ids")["speech_ids"].drop_nulls().sum() == 3 * (
        3 + 65_535
    )
    assert sorted(pandas.read_parquet(f"{local.uri}/data")["candidates"].map(len)) == [2, 2, 2]
    assert pa.dataset.dataset(f"{local.uri}/data").count_rows() == 3


def test_nothing_to_publish_in_a_folder_makes_no_file(output: OutputFolder) -> None:
    publish(Files(output), [write(output, ["a", "b"])["part"]])
    assert output.parquet_files("errors") == []
    publish(Files(output), [write(output, ["c"], ["c"])["part"]])
    assert len(output.parquet_files("data")) == 1


def test_recover_counts_what_is_there(output: OutputFolder) -> None:
    assert recover(Files(output)).ids.to_pylist() == []
    publish(Files(output), [write(output, ["a", "b", "c"], ["b"])["part"]])
    part = write(output, ["d", "e"], ["e"])["part"]
    found = recover(Files(output))
    assert sorted(found.ids.to_pylist()) == list("abcde")
    assert (found.parts, found.done, found.failed) == ([part], 3, 2)


def test_parts_that_overlap_are_published_once(output: OutputFolder) -> None:
    """Two runs on one output at the same time write blocks that share rows."""
    publish(Files(output), [write(output, ["a", "b"], ["b"])["part"]])
    for ids in (["a", "b"], ["b", "c"], ["c", "d", "e"], ["e", "a"]):
        write(output, ids, failed=["e"])
    found = recover(Files(output))
    finish(output, found)
    assert sorted(stored(output, "data")) == ["a", "c", "d"]
    assert sorted(stored(output, "errors")) == ["b", "e"]
    assert (found.done, found.failed) == (3, 2)
    assert output.parquet_files("_parts") == []


def finish(output: OutputFolder, found: Recovered) -> None:
    if found.parts:
        publish(Files(output), found.parts)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


@pytest.mark.parametrize("moment", range(1, 12))
def test_killed_while_publishing(local: OutputFolder, moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended before or after any change to the disk: the next run has every row in the output once."""
    blocks = [(["a", "b", "c"], ["b"]), (["d", "e"], []), (["f"], ["f"])]
    parts = [write(local, ids, failed)["part"] for ids, failed in blocks]
    changes = [0]

    def counted(action: Any) -> Any:
        def run(*args: Any) -> None:
            changes[0] += 1
            if changes[0] == moment:
                raise Killed
            action(*args)
            changes[0] += 1
            if changes[0] == moment:
                raise Killed

        return run

    def delete_one_by_one(uris: Sequence[str]) -> None:
        for uri in uris:
            counted(os.remove)(uri)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_atomically", counted(storage.write_atomically))
        patch.setattr(storage, "delete_files", delete_one_by_one)
        killed = False
        try:
            publish(Files(local), parts)
        except Killed:
            killed = True
    assert killed == (moment <= 10), "the test must cover every change"
    now = stored(local, "data") + stored(local, "errors")
    assert len(now) == len(set(now)), "never twice, not even now"
    found = recover(Files(local))
    assert sorted(found.ids.unique().to_pylist()) == list("abcdef")
    assert (found.done, found.failed) == (4, 2)
    finish(local, found)
    assert sorted(stored(local, "data")) == ["a", "c", "d", "e"]
    assert sorted(stored(local, "errors")) == ["b", "f"]


def test_half_written_files_are_no_parts(local: OutputFolder) -> None:
    write(local, ["a"])
    os.makedirs(local.folder("_scratch"), exist_ok=True)
    Path(local.file("_scratch", "0123")).write_bytes(b"PAR1 half")
    assert recover(Files(local)).ids.to_pylist() == ["a"]
    assert os.listdir(local.folder("_scratch")) == []


def test_rejected_rows_are_written_anew_by_every_run(output: OutputFolder) -> None:
    error = error_record("manifest", RowError("DuplicateId", "twice"))
    first, second, third = (
        {"id": row_id, "source": f"m.csv, row {row}", **error}
        for row_id, row in (("a", 2), (None, 3), ("b", 9))
    )
    assert publish_rejected(output, iter([first, second])) == 2
    assert stored(output, "errors") == ["a", None]
    assert recover(Files(output)).ids.to_pylist() == [], "they hide no row"
    assert publish_rejected(output, iter([third])) == 1
    assert stored(output, "errors") == ["b"]
    assert publish_rejected(output, iter([])) == 0
    assert output.parquet_files("errors") == []


def test_files_have_row_groups_of_bounded_size(local: OutputFolder) -> None:
    rows = 1200
    table = block([str(i) for i in range(rows)])
    big = pa.array([[candidate(1, range(20_000))]] * rows, INPUT.field("candidates").type)
    place = table.column_names.index("candidates")
    name = BlockWriter(local, 7)(table.set_column(place, INPUT.field("candidates"), big))["part"][0].as_py()
    metadata = pq.read_metadata(local.file("_parts", name))
    assert metadata.num_row_groups >= 2
    assert metadata.row_group(0).total_byte_size <= 64 << 20


def test_failed_rows_are_taken_out_to_be_tried_again(output: OutputFolder) -> None:
    """Their errors stay in the history, which numbers the attempts."""
    publish(Files(output), [write(output, ["a", "b", "c"], ["b", "c"])["part"]])
    waiting = write(output, ["d", "e"], ["e"])["part"]
    forget_failures(Files(output), [waiting])
    found = recover(Files(output))
    assert sorted(found.ids.to_pylist()) == ["a", "d"]
    assert (found.parts, found.done, found.failed) == ([], 2, 0)
    assert past_attempts(output) == {"b": 1, "c": 1, "e": 1}
    publish(Files(output), [write(output, ["b", "c"], ["c"])["part"]], attempts=past_attempts(output))
    (error,) = (
        row for n in output.parquet_files("errors") for row in output.read_table("errors", n).to_pylist()
    )
    assert (error["id"], error["attempt"]) == ("c", 2)
    forget_failures(Files(output), [])
    assert past_attempts(output) == {"b": 1, "c": 2, "e": 1}
    assert sorted(recover(Files(output)).ids.to_pylist()) == ["a", "b", "d"]


def test_parts_of_another_engine_are_dropped(output: OutputFolder) -> None:
    """A run ends when its samplers are not alike; the parts that the odd one wrote must not survive it."""
    ours, failed = write(output, ["a"])["part"], write(output, ["b"], ["b"])["part"]
    odd = block(["c"])
    place = odd.column_names.index("engine")
    odd = odd.set_column(place, odd.schema.field(place), pa.array(['{"device": "other"}']))
    BlockWriter(output, 7)(odd)
    assert sorted(recover(Files(output), ENGINE).ids.to_pylist()) == ["a", "b"]
    assert sorted(output.parquet_files("_parts")) == sorted([ours, failed])


def test_a_driver_that_wakes_up_late_adds_nothing(output: OutputFolder) -> None:
    """It knows of parts that the next driver has published since, and is about to take a number."""
    parts = [write(output, ["a", "b"], ["b"])["part"], write(output, ["c"])["part"]]
    contents = {name: storage.read_bytes(output.file("_parts", name)) for name in parts}
    late = Files(output)
    finish(output, recover(Files(output)))
    for name, content in contents.items():  # it has read them before
        output.write("_parts", name, content)
    with pytest.raises(RunError, match="another run has written"):
        publish(late, parts[:1])
    assert sorted(stored(output, "data")) == ["a", "c"]
    assert stored(output, "errors") == ["b"]
    finish(output, recover(Files(output)))
    assert sorted(stored(output, "data")) == ["a", "c"]


def test_a_late_file_stops_the_driver_that_comes_after(output: OutputFolder) -> None:
    """Its upload arrives after the next driver has looked, and before that one publishes the same parts."""
    parts = [write(output, ["a"])["part"], write(output, ["b"])["part"]]
    late, files = Files(output), Files(output)
    found = recover(files)
    content = storage.read_bytes(output.file("_parts", parts[0]))
    publish(late, parts[:1])
    output.write("_parts", parts[0], content)
    with pytest.raises(RunError, match="the same command continues"):
        publish(files, found.parts)
    finish(output, recover(Files(output)))
    assert sorted(stored(output, "data")) == ["a", "b"]


def test_numbers_of_errors_are_never_free_again(output: OutputFolder) -> None:
    late = Files(output)
    parts = [write(output, ["a"], ["a"])["part"]]
    content = storage.read_bytes(output.file("_parts", parts[0]))
    files = Files(output)
    forget_failures(files, recover(files).parts)
    output.write("_parts", parts[0], content)
    with pytest.raises(RunError, match="another run has written"):
        publish(late, parts)
    assert stored(output, "errors") == []


def test_rows_that_are_stored_twice_lose_their_second_place(output: OutputFolder) -> None:
    publish(Files(output), [write(output, ["a", "b", "c"], ["c"])["part"]])
    double = output.read_table("data", "000001.parquet")
    output.write_table("data", "elsewhere.parquet", double)
    publish(Files(output), [write(output, ["b", "c"])["part"]])
    found = recover(Files(output))
    assert sorted(found.ids.to_pylist()) == ["a", "b", "c"]
    assert sorted(stored(output, "data") + stored(output, "errors")) == ["a", "b", "c"]
    assert "c" in stored(output, "data"), "a row that is done is none that failed"


@pytest.mark.parametrize("folder", ["data", "errors", "_parts"])
def test_files_of_somebody_else_are_no_rows(output: OutputFolder, folder: str) -> None:
    output.write_table(folder, "texts.parquet", pa.table({"id": ["a"], "text": ["t"], "audio": ["a.wav"]}))
    with pytest.raises(RunError, match=rf"{folder}/texts.parquet.* was not written by a run"):
        recover(Files(output))


def test_changed_rows_are_taken_out_wherever_they_are(output: OutputFolder) -> None:
    publish(Files(output), [write(output, ["a", "b", "c"], ["c"])["part"]])
    waiting = write(output, ["d", "e"])["part"]
    forget_rows(Files(output), [waiting], pa.array(["b", "c", "e"], pa.large_string()))
    assert sorted(recover(Files(output)).ids.to_pylist()) == ["a", "d"]


@given(
    st.lists(st.lists(st.text('ab\0,"\\', min_size=1), min_size=1), min_size=2, max_size=2, unique_by=tuple)
)
def test_blocks_of_different_ids_have_different_names(blocks: list[list[str]]) -> None:
    assert block_name(blocks[0]) != block_name(blocks[1])
