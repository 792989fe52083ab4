"""The report's figures against duckdb and numpy on the same files, and what it makes of unusual outputs."""

import json
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.description import SCHEMA_VERSION
from pipeline.errors import RunError
from pipeline.output.folder import OutputFolder
from pipeline.report import write_report
from pipeline.report.figures import Stored
from pipeline.rows import token_measures
from tests.pipeline.synthetic_output import (
    candidate,
    data_table,
    error,
    make_rows,
    write_data,
    write_description,
    write_errors,
    write_metrics,
    write_part,
    write_run,
)
from tests.s3_server import BUCKET, S3Server


def strict_json(path: Path) -> Any:
    """JSON as the standard has it, without NaN and infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in the figures")

    return json.loads(path.read_text(), parse_constant=refuse)


def report(output: Path) -> Any:
    write_report(str(output))
    assert (output / "report.html").read_text().endswith("</html>\n")
    return strict_json(output / "report.json")


def judged(output: Path) -> list[dict[str, Any]]:
    with duckdb.connect() as own:
        return Stored(str(output), own).query("select duration_z, flagged from judged")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    write_run(output, count=320)
    report(output)
    return output


@pytest.fixture(scope="module")
def figures(run: Path) -> Any:
    return strict_json(run / "report.json")


@pytest.fixture(scope="module")
def database(run: Path) -> "Iterator[duckdb.DuckDBPyConnection]":
    """Tables `data`, `errors`, `candidates` with one line per candidate, and the report's own `flags`."""
    with duckdb.connect() as connection, duckdb.connect() as own:
        Stored(str(run), own)
        flags = own.sql('select id, measured.* from judged measured join rows using ("row")').to_arrow_table()
        connection.register("judged", flags)
        connection.execute("create table flags as from judged")
        for name in ("data", "errors"):
            connection.execute(f"create table {name} as from read_parquet('{run}/{name}/*.parquet')")
        connection.execute(
            "create table candidates as "
            "select id, text, c.* from (select id, text, unnest(candidates) c from data)"
        )
        yield connection


def one(database: "duckdb.DuckDBPyConnection", query: str) -> Any:
    (row,) = database.execute(query).fetchall()
    return row if len(row) > 1 else row[0]


def test_counts(figures: Any, database: "duckdb.DuckDBPyConnection") -> None:
    assert figures["rows"]["done"] == one(database, "select count(*) from data") == 320
    assert figures["rows"]["failed"] == one(database, "select count(*) from errors") == 9
    assert figures["rows"]["failed_share"] == pytest.approx(9 / 329)
    assert figures["candidates"]["all"]["count"] == one(database, "select count(*) from candidates")
    assert figures["candidates"]["best"]["count"] == 320
    assert figures["rows"]["unpublished"] == 0


@pytest.mark.parametrize(("view", "where"), [("all", "true"), ("best", "rank = 1")])
@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("score", "score"),
        ("tokens", "num_tokens"),
        ("duration_s", "duration_s"),
        ("longest_run", "longest_run"),
        ("repeated_ngrams", "repeated_ngrams"),
    ],
)
def test_distributions(
    figures: Any, database: "duckdb.DuckDBPyConnection", view: str, where: str, name: str, column: str
) -> None:
    values = database.execute(f"select {column}::double v from candidates where {where}").fetchnumpy()["v"]
    got = figures["candidates"][view][name]
    assert got["count"] == len(values)
    assert (got["min"], got["max"]) == (values.min(), values.max())
    assert got["mean"] == pytest.approx(values.mean())
    for quantile in (1, 5, 25, 50, 75, 95, 99):
        exact = np.quantile(values, quantile / 100, method="inverted_cdf")
        assert got[f"p{quantile:02}"] == pytest.approx(exact, abs=np.ptp(values) / 2000)
    bars = got["histogram"]
    edges = bars["low"] + bars["width"] * np.arange(len(bars["counts"]) + 1)
    assert bars["counts"] == np.histogram(values, edges)[0].tolist()
    assert sum(bars["counts"]) + bars["below"] + bars["above"] == len(values)


@pytest.mark.parametrize(("view", "where"), [("all", "true"), ("best", "rank = 1")])
def test_flags_and_hours(figures: Any, database: "duckdb.DuckDBPyConnection", view: str, where: str) -> None:
    conditions = {
        "unfinished": "not finished",
        "empty": "num_tokens = 0",
        "long_run": "longest_run >= 9",
        "repeated": "repeated_ngrams >= 0.2",
    }
    got = figures["candidates"][view]
    for name, condition in conditions.items():
        count = one(database, f"select count(*) from candidates where {where} and {condition}")
        assert got["flags"][name] == {"count": count, "share": pytest.approx(count / got["count"])}
    hours = one(database, f"select sum(duration_s) / 3600 from candidates where {where}")
    assert got["audio_hours"] == pytest.approx(hours)


def test_best_of_n_ends(figures: Any, database: "duckdb.DuckDBPyConnection") -> None:
    """Of one candidate the mean, of all the maximum, of two the mean over all pairs."""
    points = figures["best_of_n"]["points"]
    assert [point["n"] for point in points] == list(range(1, 17))
    assert all(point["rows"] == 320 for point in points)
    for n, query in {
        1: "select avg(score) from candidates",
        2: "select avg(greatest(a.score, b.score)) from candidates a join candidates b on a.id = b.id "
        "and a.candidate < b.candidate",
        16: "select avg(m) from (select max(score) m from candidates group by id)",
    }.items():
        assert points[n - 1]["expected_best_score"] == pytest.approx(one(database, query), rel=1e-6)
    chosen = one(database, "select avg(score), avg(finished::int) from candidates where rank = 1")
    last = points[-1]
    assert (last["expected_chosen_score"], last["chosen_finished_share"]) == pytest.approx(chosen, rel=1e-6)
    gains = figures["best_of_n"]["n_for_share_of_gain"]
    first, all_of_them = points[0]["expected_chosen_score"], points[-1]["expected_chosen_score"]
    for share, n in ((0.5, gains["50%"]), (0.9, gains["90%"])):
        wanted = first + share * (all_of_them - first)
        assert points[n - 2]["expected_chosen_score"] < wanted <= points[n - 1]["expected_chosen_score"]


def robust_z(values: np.ndarray) -> np.ndarray:
    """Modified z-scores of Iglewicz and Hoaglin (1993)."""
    distances = values - np.median(values)
    return 0.6745 * distances / np.median(np.abs(distances))


def exact_z(database: "duckdb.DuckDBPyConnection") -> dict[tuple[str, int], float]:
    """Robust z-scores by numpy, in every band of text length that has enough candidates."""
    rows = database.execute(
        "select id, candidate, text, duration_s from candidates where finished"
    ).fetchall()
    paces = np.log2([duration / token_measures.count_characters(text) for _, _, text, duration in rows])
    bands = np.floor(2 * np.log2([token_measures.count_characters(text) for _, _, text, _ in rows]))
    z = {}
    for band in np.unique(bands):
        chosen = np.flatnonzero(bands == band)
        if len(chosen) >= 50:
            scores = robust_z(paces[chosen])
            z.update({rows[i][:2]: score for i, score in zip(chosen, scores.tolist(), strict=True)})
    return z


def test_duration_z_of_every_candidate(figures: Any, database: "duckdb.DuckDBPyConnection") -> None:
    flags = database.execute("select id, candidate, duration_z, unusual_duration from flags").fetchall()
    got = {(row_id, index): z for row_id, index, z, _ in flags}
    expected = exact_z(database)
    assert len(expected) > 4000
    assert max(abs(got[key] - z) / (1 + abs(z)) for key, z in expected.items()) < 0.02
    unfinished = database.execute("select id, candidate from candidates where not finished").fetchall()
    assert unfinished
    assert all(got[key] is None for key in unfinished)
    assert all(unusual == (z is not None and abs(z) > 3.5) for _, _, z, unusual in flags)
    outliers = figures["candidates"]["all"]["flags"]
    counted = outliers["long"]["count"] + outliers["short"]["count"]
    assert counted == pytest.approx(sum(unusual for *_, unusual in flags), abs=2)
    assert counted > 50


def test_flags_repeat_what_the_candidates_say(database: "duckdb.DuckDBPyConnection") -> None:
    assert one(database, "select count(*) from flags") == one(database, "select count(*) from candidates")
    wrong = """select count(*) from flags f join candidates c on f.id = c.id and f.candidate = c.candidate
        where f.rank <> c.rank or f.flagged <>
        (not c.finished or c.num_tokens = 0 or c.longest_run >= 9 or c.repeated_ngrams >= 0.2)"""
    assert one(database, wrong) == 0


def test_the_map_holds_every_candidate(figures: Any, database: "duckdb.DuckDBPyConnection") -> None:
    cells = figures["pace"]["cells"]
    assert sum(cell["candidates"] for cell in cells) == 320 * 16
    rows = database.execute("select text, duration_s from candidates").fetchall()
    expected: dict[tuple[int, int], int] = {}
    for text, duration in rows:
        key = (
            math.floor(5 * math.log2(token_measures.count_characters(text))),
            math.floor(5 * math.log2(duration)),
        )
        expected[key] = expected.get(key, 0) + 1
    assert {(c["characters_log2"], c["duration_log2"]): c["candidates"] for c in cells} == expected


def test_rows_to_look_at(figures: Any, database: "duckdb.DuckDBPyConnection") -> None:
    queries = {
        "low_scores": "select id from candidates where rank = 1 order by score, id desc limit 10",
        "long_runs": "select id from candidates where rank = 1 and longest_run >= 9 "
        "order by longest_run desc, id desc limit 10",
        "repeated": "select id from candidates where rank = 1 and repeated_ngrams >= 0.2 "
        "order by repeated_ngrams desc, id desc limit 10",
        "unusual_duration": "select f.id from flags f where rank = 1 and unusual_duration "
        "order by abs(duration_z) desc limit 10",
    }
    for name, query in queries.items():
        assert [record["id"] for record in figures["look_at"][name]] == [
            row for (row,) in database.execute(query).fetchall()
        ]


def test_failures(figures: Any, database: "duckdb.DuckDBPyConnection") -> None:
    groups = [(group["stage"], group["type"], group["rows"]) for group in figures["failures"]]
    query = "select stage, type, count(*) from errors group by all order by 3 desc, 1, 2"
    assert groups == database.execute(query).fetchall()
    assert [len(group["examples"]) for group in figures["failures"]] == [3, 1, 1]
    assert figures["failures"][0]["examples"][0] == {
        "id": "bad-0",
        "source": "manifest.csv, row 0",
        "message": "no such file",
    }


def test_speed_sums_sessions(figures: Any) -> None:
    speed = figures["speed"]
    lasts = [
        json.loads(path.read_text().splitlines()[-1])
        for path in sorted(Path(figures["output"]).glob("metrics/*"))
    ]
    assert (speed["sessions"], len(lasts)) == (2, 2)
    assert speed["wall_hours"] == pytest.approx(sum(last["elapsed_s"] for last in lasts) / 3600)
    tokens, seconds = sum(last["tokens"] for last in lasts), sum(last["elapsed_s"] for last in lasts)
    assert speed["tokens_per_s"] == pytest.approx(tokens / seconds)
    assert speed["gpu_hours_per_audio_hour"] == pytest.approx(
        seconds / sum(last["audio_s"] for last in lasts)
    )
    assert speed["lanes_in_use"] == pytest.approx(0.8)
    assert [stage["stage"] for stage in speed["stages"]] == ["sample", "rank", "audio", "write"]
    assert sum(stage["share"] for stage in speed["stages"]) == pytest.approx(1)
    area = sum((p["to_s"] - p["from_s"]) * p["tokens_per_s"] for points in speed["series"] for p in points)
    assert area == pytest.approx(tokens)
    assert speed["series"][1][0]["from_s"] == 900


def test_an_output_without_any_row(tmp_path: Path) -> None:
    write_description(tmp_path)
    figures = report(tmp_path)
    assert figures["rows"] == {
        "done": 0,
        "failed": 0,
        "failed_share": None,
        "unpublished": 0,
        "text_characters": None,
    }
    assert figures["candidates"]["all"]["score"] is None
    assert figures["best_of_n"]["points"] == figures["failures"] == []
    assert figures["run"]["schema_version"] == SCHEMA_VERSION


def test_an_output_of_errors_alone(tmp_path: Path) -> None:
    write_errors(tmp_path, [error(1), error(2, "text", "EmptyText"), {**error(3), "id": None}])
    figures = report(tmp_path)
    assert (figures["rows"]["failed"], figures["rows"]["failed_share"]) == (3, 1)
    assert [group["rows"] for group in figures["failures"]] == [2, 1]
    assert figures["run"] is None
    assert "manifest.csv, row 3" in (tmp_path / "report.html").read_text()


def test_one_row_with_one_candidate(tmp_path: Path) -> None:
    write_data(
        tmp_path,
        [{"id": "a", "text": "Hi.", "seed": 0, "candidates": [{**candidate(0, 3.5, [7] * 20), "rank": 1}]}],
    )
    figures = report(tmp_path)
    (point,) = figures["best_of_n"]["points"]
    assert (point["n"], point["expected_best_score"], point["expected_chosen_score"]) == (1, 3.5, 3.5)
    assert figures["candidates"]["best"]["score"]["p50"] == 3.5
    flags = figures["candidates"]["all"]["flags"]
    assert flags["long"] == flags["short"] == {"count": 0, "share": 0.0}
    assert judged(tmp_path) == [{"duration_z": 0, "flagged": True}]
    assert figures["candidates"]["all"]["flags"]["long_run"]["count"] == 1


def test_a_candidate_without_tokens_and_a_row_without_candidates(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": "Hi.", "seed": 0, "candidates": [{**candidate(0, 1.0, []), "rank": 1}]},
        {"id": "b", "text": "", "seed": 0, "candidates": []},
    ]
    write_data(tmp_path, rows)
    figures = report(tmp_path)
    assert figures["rows"]["done"] == 2
    assert figures["candidates"]["all"]["flags"]["empty"] == {"count": 1, "share": 1.0}
    assert judged(tmp_path) == [{"duration_z": None, "flagged": True}]


def test_rows_that_keep_only_their_best(tmp_path: Path) -> None:
    rows = make_rows(40, 8, seed=5)
    write_data(tmp_path / "all", rows)
    whole = {point["n"]: point for point in report(tmp_path / "all")["best_of_n"]["points"]}
    write_data(tmp_path / "kept", [{**row, "candidates": row["candidates"][:3]} for row in rows])
    write_description(tmp_path / "kept", settings={"num_candidates": 8, "scoring": {"keep": 3}})
    kept = report(tmp_path / "kept")["best_of_n"]
    assert kept["rows_by_candidates"] == [{"sampled": 8, "stored": 3, "rows": 40}]
    assert [point["n"] for point in kept["points"]] == [6, 7, 8]
    for point in kept["points"]:
        assert point["expected_chosen_score"] == pytest.approx(whole[point["n"]]["expected_chosen_score"])


def test_unpublished_blocks_count_once(tmp_path: Path) -> None:
    """A run that was killed between publishing a block and deleting its own file leaves both."""
    rows = make_rows(9, 2)
    write_data(tmp_path, rows[:4])
    write_part(tmp_path, rows[2:7], [error(1), error(2)], "p1")
    write_part(tmp_path, rows[6:], [error(2), error(3)], "p2")
    # A repeated row has the id of the row that counts.
    write_errors(tmp_path, [error(1), {**error(9, "manifest", "DuplicateId"), "id": rows[8]["id"]}])
    figures = report(tmp_path)
    assert (figures["rows"]["done"], figures["rows"]["unpublished"]) == (9, 5)
    assert figures["rows"]["failed"] == 4
    assert figures["candidates"]["all"]["count"] == 18


def test_a_run_that_has_only_just_begun(tmp_path: Path) -> None:
    write_description(tmp_path)
    write_part(tmp_path, make_rows(3, 2), [])
    write_metrics(tmp_path, 1e9, [500.0], left=97)
    figures = report(tmp_path)
    assert (figures["rows"]["done"], figures["speed"]["rows_left"]) == (3, 97)


@pytest.mark.parametrize(("when", "unpublished"), [("_parts", 0), ("data", 3)])
def test_a_block_that_is_published_while_the_report_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, unpublished: int
) -> None:
    """Whether before its own file is read or after."""
    rows = make_rows(6, 2)
    open_table = OutputFolder.open_table

    def publish_meanwhile(folder: OutputFolder, *place: str) -> Any:
        if place[0] == when and not (tmp_path / "data" / "b.parquet").exists():
            write_data(tmp_path, rows[3:], "b")
            (tmp_path / "_parts" / "a.parquet").unlink()
        return open_table(folder, *place)

    write_data(tmp_path, rows[:3])
    write_part(tmp_path, rows[3:], [])
    monkeypatch.setattr(OutputFolder, "open_table", publish_meanwhile)
    assert report(tmp_path)["rows"] | {"text_characters": None} == {
        "done": 6,
        "failed": 0,
        "failed_share": 0.0,
        "unpublished": unpublished,
        "text_characters": None,
    }


def test_an_object_store(tmp_path: Path, s3: S3Server) -> None:
    """The figures of an output on a real S3 server are those of the same files on a disk."""
    write_run(tmp_path, count=30, candidates=3)
    local = report(tmp_path)
    client = s3.client()
    for path in tmp_path.rglob("*.[pj]*"):
        if path.parent.name in ("data", "errors", "metrics") or path.name == "run.json":
            client.upload_file(str(path), BUCKET, f"report/{path.relative_to(tmp_path)}")
    written = write_report(s3.uri("report"), json_file=str(tmp_path / "from-s3.json"))
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix="report/")["Contents"]
    names = {item["Key"] for item in listed}
    remote = strict_json(tmp_path / "from-s3.json")
    assert (local.pop("output"), remote.pop("output")) == (str(tmp_path), f"s3://{BUCKET}/report")
    del local["created"], remote["created"]
    assert remote == local
    assert "report/report.html" in names
    assert written.html.startswith(f"s3://{BUCKET}/report/report.html")


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Of Python and numpy; DuckDB has a limit and goes on in files."""
    rows = make_rows(200, 4)
    table = data_table(rows)
    peaks = []
    for times in (30, 30, 150):  # the first one also takes what is taken once
        (tmp_path / f"{len(peaks)}" / "data").mkdir(parents=True)
        pq.write_table(pa.concat_tables([table] * times), tmp_path / f"{len(peaks)}" / "data" / "a.parquet")
        with duckdb.connect() as database:
            tracemalloc.start()
            stored = Stored(str(tmp_path / f"{len(peaks)}"), database)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert stored.query("select count(*) as n from rows") == [{"n": times * 200}]
    # One number per candidate, kept for the 24,000 more rows, would take 768 KB.
    assert peaks[2] - peaks[1] < 50_000


def test_a_table_per_value_of_a_column(tmp_path: Path) -> None:
    rows = make_rows(303, 3)
    write_data(tmp_path, rows)
    path = tmp_path / "data" / "a.parquet"
    table = pq.read_table(path)
    columns: dict[str, list[Any]] = {
        "speaker": ["anna", "<b>", None] * 101,
        "source": [1, 2, 2] * 101,
        "book": [1] * 303,
        "path": [f"clip {i}" for i in range(303)],
        "phonemes": [["a"]] * 303,
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)
    by_column = report(tmp_path)["by_column"]
    assert list(by_column) == ["source", "speaker"]  # others: one value, too many, no label
    assert {item["value"]: item["rows"] for item in by_column["speaker"]} == {
        "anna": 101,
        "<b>": 101,
        None: 101,
    }
    (anna,) = (item for item in by_column["speaker"] if item["value"] == "anna")
    best = [row["candidates"][0] for row in rows[::3]]
    assert anna["mean_score"] == pytest.approx(np.mean([item["score"] for item in best]))
    assert anna["audio_hours"] == pytest.approx(sum(item["duration_s"] for item in best) / 3600)
    assert anna["unfinished_share"] == pytest.approx(np.mean([not item["finished"] for item in best]))
    assert "<bdi>&lt;b&gt;</bdi>" in (tmp_path / "report.html").read_text()


def test_the_order_of_files_does_not_matter(tmp_path: Path) -> None:
    rows = make_rows(120, 4)
    for name, parts in (("a", (0, 50, 120)), ("b", (0, 110, 120))):
        for i in (0, 1):
            write_data(tmp_path / name, rows[parts[i] : parts[i + 1]], str(i if name == "a" else 1 - i))
    first, second = (report(tmp_path / name) for name in ("a", "b"))
    assert first["look_at"] == second["look_at"]
    assert first["pace"] == second["pace"]
    for a, b in zip(first["best_of_n"]["points"], second["best_of_n"]["points"], strict=True):
        assert a == pytest.approx(b)


def test_many_types_of_failures_are_bounded(tmp_path: Path) -> None:
    write_errors(tmp_path, [error(i, kind=f"Type{i}") for i in range(500)])
    figures = report(tmp_path)
    assert len(figures["failures"]) == 101
    assert sum(group["rows"] for group in figures["failures"]) == 500
    assert figures["failures"][0]["type"] == "other types"


def test_descriptions_that_are_no_json_or_hold_nan(tmp_path: Path) -> None:
    write_errors(tmp_path, [error(1)])
    (tmp_path / "run.json").write_text("{")
    assert report(tmp_path)["run"] is None
    (tmp_path / "run.json").write_text('{"a": NaN, "keep": "x", "num_candidates": [1]}')
    assert report(tmp_path)["run"] == {"a": None, "keep": "x", "num_candidates": [1]}


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all", None])
def test_a_file_that_is_no_parquet_is_named(tmp_path: Path, content: bytes | None) -> None:
    write_data(tmp_path, make_rows(3, 2), "good")
    good = (tmp_path / "data" / "good.parquet").read_bytes()
    (tmp_path / "data" / "bad.parquet").write_bytes(good[: len(good) // 2] if content is None else content)
    with pytest.raises(RunError, match=r"data/bad\.parquet cannot be read"):
        write_report(str(tmp_path))


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "data" / "x.parquet")
    with pytest.raises(RunError, match=r"x\.parquet has no column 'id'"):
        write_report(str(tmp_path))
    table = pa.table({"id": ["a"], "text": ["b"], "candidates": [[{"score": 1.0}]]})
    pq.write_table(table, tmp_path / "data" / "x.parquet")
    with pytest.raises(RunError, match=r"the candidates lack rank, candidate, num_tokens"):
        write_report(str(tmp_path))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("/data/a?b@c", "/data/a?b@c"),
        ("s3://key:secret@bucket/a@b/c?endpoint_override=h:1", "s3://bucket/a@b/c"),
        ("gs://bucket/x", "gs://bucket/x"),
    ],
)
def test_credentials_are_not_shown(uri: str, shown: str) -> None:
    assert storage.public(uri) == shown


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunError, match="holds no run"):
            write_report(str(folder))
