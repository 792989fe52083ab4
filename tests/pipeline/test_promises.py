"""What attackers and accidents do to a run's files: no row doubled, lost or mixed, and the user is told."""

import json
import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.description import load_sampled
from pipeline.errors import ManifestError, RunError
from pipeline.output.folder import OutputFolder
from pipeline.rows import stored as stored_rows
from pipeline.rows.manifest import Reading
from tests.pipeline.clips import write_jsonl
from tests.pipeline.driver_only import candidate_of, driver_only, run
from tests.soak.processes import wait_until

ROWS = [{"id": f"r{i:02}", "text": f"text {i:02}", "audio": f"{i:02}.wav"} for i in range(40)]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """A manifest that appears whole, as an editor or a copy makes it."""
    partial = path.with_name("partial")
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), partial)
    else:
        write_jsonl(partial, rows)
    partial.rename(path)


def stored(output: Path) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(output / "data").to_pylist()
    repeated = [row_id for row_id, count in Counter(row["id"] for row in rows).items() if count > 1]
    assert repeated == []
    return {row["id"]: row for row in rows}


def is_complete(output: Path, rows: list[dict[str, Any]]) -> bool:
    """Whether every row is there, made from its own text."""
    found = pq.read_table(output / "data").to_pylist()
    assert len({row["id"] for row in found}) == len(found)
    made = {row["id"]: bytes(row["candidates"][0]["speech_ids"]).decode() for row in found}
    return made == {row["id"]: row["text"] for row in rows}


def changes(change: str) -> list[dict[str, Any]]:
    return {
        "reversed": ROWS[::-1],
        "rotated": ROWS[3:] + ROWS[:3],
        "other": [row | {"id": f"x{row['id'][1:]}"} for row in ROWS],
    }[change]


@pytest.mark.parametrize("change", ["reversed", "rotated", "other"])
def test_a_parquet_manifest_replaced_while_it_is_read_ends_the_run(tmp_path: Path, change: str) -> None:
    manifest, output = tmp_path / "m.parquet", tmp_path / "out"
    write(manifest, ROWS)

    def between(number: int) -> None:
        if number == 8:
            write(manifest, changes(change))
            stored_rows._kept.clear()  # another worker reads, which has not opened the file yet

    with driver_only(between), pytest.raises(ManifestError, match="has changed since the run began"):
        run(str(manifest), str(output))
    write(manifest, ROWS)
    with driver_only():
        run(str(manifest), str(output))
    assert is_complete(output, ROWS)


@pytest.mark.parametrize("change", ["reversed", "rotated", "other"])
def test_a_text_manifest_replaced_while_it_is_read_is_read_as_it_was(tmp_path: Path, change: str) -> None:
    manifest, output = tmp_path / "m.jsonl", tmp_path / "out"
    write(manifest, ROWS)

    def between(number: int) -> None:
        if number == 8:
            write(manifest, changes(change))
            stored_rows._kept.clear()

    with driver_only(between):
        run(str(manifest), str(output))
    assert is_complete(output, ROWS)


@pytest.mark.parametrize("end", ["whole", "failed", "nothing to do"])
def test_copies_of_the_manifest_go_with_the_run(tmp_path: Path, end: str) -> None:
    """And those that a killed run has left go with the next one."""
    manifest, output, copies = tmp_path / "m.jsonl", tmp_path / "out", tmp_path / "out" / "_manifest"
    write(manifest, ROWS)
    if end == "nothing to do":
        with driver_only():
            run(str(manifest), str(output))
    copies.mkdir(parents=True, exist_ok=True)
    (copies / "left.parquet").write_bytes(b"by a run that was killed")
    seen: list[list[str]] = []

    def between(number: int) -> None:
        seen.append(sorted(path.name for path in copies.iterdir()))
        if end == "failed":
            raise RunError("by the test")

    with driver_only(between), pytest.raises(RunError) if end == "failed" else nullcontext():
        run(str(manifest), str(output))
    assert all(len(names) == 1 and names != ["left.parquet"] for names in seen)
    assert (seen == []) == (end == "nothing to do")
    assert list(copies.iterdir()) == []


def test_a_manifest_that_cannot_be_used_leaves_no_output(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": "1", "text": "a"}\n')
    with driver_only(), pytest.raises(ManifestError, match="no column 'audio'"):
        run(str(tmp_path / "m.jsonl"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_ids_with_any_separator_are_rows_of_their_own(tmp_path: Path) -> None:
    ids = ["a", "b", "a\0b", "c", 'a","b', "a\x1fb", "a\nb", "a/b"]
    rows = [{"id": row_id, "text": f"text of {row_id!r}", "audio": "a.wav"} for row_id in ids]
    write(tmp_path / "m.jsonl", rows)
    with driver_only():
        run(str(tmp_path / "m.jsonl"), str(tmp_path / "out"))
    assert is_complete(tmp_path / "out", rows)


def test_an_output_without_its_description_is_not_continued(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", ROWS)
    with driver_only():
        run(str(tmp_path / "m.jsonl"), str(tmp_path / "out"))
        (tmp_path / "out" / "run.json").unlink()
        with pytest.raises(RunError, match=r"holds Parquet files but no run\.json"):
            run(str(tmp_path / "m.jsonl"), str(tmp_path / "out"))


def test_a_folder_of_somebody_else_is_no_output(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "data").mkdir(parents=True)
    write(folder / "data" / "texts.parquet", ROWS)
    before = (folder / "data" / "texts.parquet").read_bytes()
    manifest = shutil.copy(folder / "data" / "texts.parquet", tmp_path / "m.parquet")
    with driver_only(), pytest.raises(RunError, match=r"holds Parquet files but no run\.json"):
        run(str(manifest), str(folder))
    assert (folder / "data" / "texts.parquet").read_bytes() == before
    assert [path.name for path in (folder / "data").iterdir()] == ["texts.parquet"]


def test_the_manifest_may_not_lie_in_the_output(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "texts.parquet", ROWS)
    with driver_only(), pytest.raises(ManifestError, match="lies in the output folder"):
        run(str(tmp_path / "data" / "texts.parquet"), str(tmp_path))


def test_files_added_to_the_output_are_named(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", ROWS)
    with driver_only():
        run(str(tmp_path / "m.jsonl"), str(tmp_path / "out"))
        write(tmp_path / "out" / "data" / "texts.parquet", ROWS)
        with pytest.raises(RunError, match=r"data/texts\.parquet was not written by a run"):
            run(str(tmp_path / "m.jsonl"), str(tmp_path / "out"))


@pytest.mark.parametrize("folder", ["data", "_parts"])
def test_what_is_deleted_during_a_run_is_missed_at_its_end(tmp_path: Path, folder: str) -> None:
    write(tmp_path / "m.jsonl", ROWS)
    output = tmp_path / "out"

    def between(number: int) -> None:
        if number == 12:
            wait_until(lambda: any((output / folder).glob("*.parquet")), 60, "a file to be there")
            for path in (output / folder).glob("*.parquet"):
                path.unlink(missing_ok=True)

    with driver_only(between), pytest.raises((RunError, FileNotFoundError)) as caught:
        run(str(tmp_path / "m.jsonl"), str(output), publish_bytes=1 if folder == "data" else 10**9)
    if folder == "data":
        assert "rows that were done are not in" in str(caught.value)
    with driver_only():
        run(str(tmp_path / "m.jsonl"), str(output))
    assert is_complete(output, ROWS)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_changed_rows_are_told_and_made_again_on_request(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, output = tmp_path / f"m{suffix}", tmp_path / "out"
    write(manifest, ROWS)
    with driver_only():
        run(str(manifest), str(output))
        before = stored(output)
        write(manifest, ROWS)
        capsys.readouterr()
        run(str(manifest), str(output))
        assert "--redo-changed" not in capsys.readouterr().err, "nothing has changed"
        now = [dict(row) for row in ROWS[:30]]
        now[4]["text"] = "another text"
        now[9]["audio"] = "another.wav"
        write(manifest, now)
        run(str(manifest), str(output))
        told = capsys.readouterr().err
        assert "2 of the rows done before have another text or audio now (the first: 'r04')" in told
        assert "10 rows of the output are not in the manifest any more" in told
        assert stored(output) == before
        summary = run(str(manifest), str(output), redo_changed=True)
        assert (summary.totals.rows, summary.done_before) == (2, 38)
        after = stored(output)
        assert {i for i in before if before[i] != after[i]} == {"r04", "r09"}
        assert after["r04"]["candidates"][0]["speech_ids"] == candidate_of("another text")[0]["speech_ids"]
        capsys.readouterr()
        run(str(manifest), str(output), redo_changed=True)
        assert "have another text" not in capsys.readouterr().err


def test_embedded_clips_go_by_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their bytes are not read to find out what is to do."""
    rows = [
        {"id": row["id"], "text": row["text"], "audio": {"bytes": b"RIFF", "path": row["audio"]}}
        for row in ROWS
    ]
    manifest = tmp_path / "m.parquet"
    write(manifest, rows)
    with driver_only():
        run(str(manifest), str(tmp_path / "out"))
        run(str(manifest), str(tmp_path / "out"))
        assert "--redo-changed" not in capsys.readouterr().err
        rows[7]["audio"] = {"bytes": b"RIFF", "path": "other.wav"}
        write(manifest, rows)
        run(str(manifest), str(tmp_path / "out"))
    assert "1 of the rows done before have another text" in capsys.readouterr().err


def test_how_a_manifest_is_understood_is_remembered(tmp_path: Path) -> None:
    """A replay reads it as the run did, and a run that ranks the output again reads that as it is."""
    reading = Reading("csv", "id=utt,text=said,audio=wav", ";")
    lines = ["wav;said;utt", *(";".join((row["audio"], row["text"], row["id"])) for row in ROWS)]
    (tmp_path / "list.dat").write_text("\n".join(lines))
    with driver_only():
        run(str(tmp_path / "list.dat"), str(tmp_path / "out"), reading=reading)
        again = run(str(tmp_path / "list.dat"), str(tmp_path / "out"), reading=reading)
        with pytest.raises(ManifestError, match="no file of a known kind"):
            run(str(tmp_path / "list.dat"), str(tmp_path / "out"))
    assert (again.totals.rows, again.done_before) == (0, 40)
    assert is_complete(tmp_path / "out", ROWS)
    before, *_ = load_sampled(OutputFolder(str(tmp_path / "out")))
    assert Reading(**before.about.reading) == reading


def test_the_output_may_lie_in_the_manifest_s_folder(tmp_path: Path) -> None:
    write(tmp_path / "m.parquet", ROWS)
    with driver_only():
        first = run(str(tmp_path), str(tmp_path / "out"))
        again = run(str(tmp_path), str(tmp_path / "out"))
    assert (first.totals.rows, again.totals.rows, again.done_before) == (40, 0, 40)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["about"]["manifest"] == [str(tmp_path)]
