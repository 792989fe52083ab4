"""An output of a run, read with what people read Parquet with: nested candidates come out right in each.

Compared with what Python's own JSON of the rows says, not with what Arrow reads.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from pipeline import readable
from pipeline.card import BEGIN, write_card
from pipeline.checkpoint import describe_checkpoint
from pipeline.description import load
from pipeline.errors import RunError
from pipeline.output.folder import OutputFolder
from pipeline.output.publish import AUDIO_METADATA
from pipeline.output.stored_candidates import open_stored
from pipeline.rows.manifest import open_manifest
from pipeline.rows.memory import MAX_CANDIDATES
from pipeline.rows.normalise import scan
from pipeline.rows.payloads import CLIP_TYPE, SPEECH_PAYLOAD, STORED_PAYLOAD, Payload
from pipeline.rows.plan import make_plan
from pipeline.settings import RankingSettings, ResultSettings, Run
from pipeline.stages import Chain, Work, stages_of
from tests.pipeline.synthetic_output import candidate, data_table, make_rows, write_description

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
        for item, expected in zip(found["candidates"], row["candidates"], strict=True):
            assert np.array_equal(item["speech_ids"], expected["speech_ids"])
            assert np.float32(item["score"]) == np.float32(expected["score"])
            for name in ("candidate", "num_tokens", "finished"):
                assert item[name] == expected[name]


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


def test_load_dataset_finds_the_rows_by_the_card(output: Path, written: list[Row], tmp_path: Path) -> None:
    """And nothing else of an output, with the types of its columns, and sound as sound."""
    datasets = pytest.importorskip("datasets")
    folder = OutputFolder(str(tmp_path / "corpus"))
    sound = pa.array([{"bytes": b"fLaC", "path": f"{row['id']}.flac"} for row in written], CLIP_TYPE)
    table = data_table(written).append_column("audio", sound)
    table = table.append_column("tags", pa.array([["a"], None] * (ROWS // 2), pa.list_(pa.string())))
    folder.write_table("data", "000001.parquet", table.replace_schema_metadata(AUDIO_METADATA))
    folder.write_table("errors", "000001.parquet", pa.table({"id": ["x"], "message": ["bad"]}))
    folder.write("audio", "row-000000.flac", b"fLaC")
    folder.write("_parts", "p.parquet", b"half a file")
    folder.write("metrics", "m.jsonl", b'{"rows": 5}')
    write_description(Path(folder.uri))
    write_card(folder, load(folder))
    found = datasets.load_dataset(folder.uri, cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in found.items()} == {"train": ROWS}
    features = found["train"].features
    assert features["audio"] == datasets.Audio(sampling_rate=24_000)
    assert features == datasets.Features.from_arrow_schema(folder.schema("data", "000001.parquet"))
    loaded = found["train"].cast_column("audio", datasets.Audio(decode=False))
    assert {row["id"]: row["audio"]["bytes"] for row in loaded} == {row["id"]: b"fLaC" for row in written}


def test_a_card_keeps_what_people_write_and_renews_the_rest(written: list[Row], tmp_path: Path) -> None:
    folder = OutputFolder(str(tmp_path))
    write_description(tmp_path)
    write_card(folder, load(folder))
    assert "dataset_info" not in (tmp_path / "README.md").read_text()
    folder.write_table("data", "000001.parquet", data_table(written[:2]))
    write_card(folder, load(folder))
    first = (tmp_path / "README.md").read_text()
    assert "| the best of each row | 2 | " in first
    assert f"| all that are stored | {2 * CANDIDATES} | " in first
    mine = first.replace("license: other", "license: cc-by-4.0").replace(
        "| the texts | |", "| the texts | CC0 |"
    )
    (tmp_path / "README.md").write_text(mine.replace(BEGIN, f"# By us\n\n{BEGIN}"))
    folder.write_table("data", "000002.parquet", data_table(written[2:]))
    for _ in range(2):
        write_card(folder, load(folder))
    text = (tmp_path / "README.md").read_text()
    assert "license: cc-by-4.0\n" in text
    assert "| the texts | CC0 |" in text
    assert text.count("# By us\n") == text.count(BEGIN) == 1
    assert f"| the best of each row | {ROWS} | " in text
    card = yaml.safe_load(text.split("---")[1])
    assert card["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}
    ]
    best = [row["candidates"][0]["score"] for row in written]
    assert f" {readable.number(float(np.quantile(best, 0.5)))} |" in text


@pytest.mark.parametrize(
    "dtype", [pa.map_(pa.string(), pa.int8()), pa.list_(pa.map_(pa.string(), pa.int8()))]
)
def test_a_type_that_datasets_has_not_is_left_to_the_files(tmp_path: Path, dtype: pa.DataType) -> None:
    table = data_table(make_rows(2, 1)).append_column("odd", pa.nulls(2, dtype))
    folder = OutputFolder(str(tmp_path))
    folder.write_table("data", "000001.parquet", table)
    write_description(tmp_path)
    write_card(folder, load(folder))
    text = (tmp_path / "README.md").read_text()
    assert "dataset_info" not in text
    assert "data/*.parquet" in text


def test_a_card_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_description(tmp_path)
    for content in (b"---\nlicense: [mit\n---\n", b"\xff"):
        (tmp_path / "README.md").write_bytes(content)
        with pytest.raises(RunError, match=r"README\.md cannot be read: mend or delete it"):
            write_card(OutputFolder(str(tmp_path)), load(OutputFolder(str(tmp_path))))
        assert (tmp_path / "README.md").read_bytes() == content


def two_outputs(tmp_path: Path) -> tuple[list[Path], list[str]]:
    """Of one pass-through column each, without a value in the first; their ids."""
    outputs, ids = [], []
    for number, note in enumerate((None, "x")):
        rows = make_rows(3, 2, seed=number, prefix=f"run{number}")
        table = data_table(rows).append_column("note", pa.array([None, None, note], pa.string()))
        tags = pa.array([[], [], [note] if note else []], pa.list_(pa.string()))
        OutputFolder(str(tmp_path / f"run-{number}")).write_table(
            "data", "000001.parquet", table.append_column("tags", tags)
        )
        outputs.append(tmp_path / f"run-{number}" / "data" / "000001.parquet")
        ids += [row["id"] for row in rows]
    return outputs, ids


def test_two_outputs_are_read_together(tmp_path: Path) -> None:
    """Where a column of one has no value, it is text, and no `null` that readers would stumble over."""
    datasets, duckdb, polars, pandas = map(pytest.importorskip, ("datasets", "duckdb", "polars", "pandas"))
    files, ids = two_outputs(tmp_path)
    names = [str(path) for path in files]
    assert sorted(row[0] for row in duckdb.read_parquet(names).fetchall()) == sorted(ids)
    assert polars.read_parquet(names)["id"].to_list() == ids
    loaded = datasets.load_dataset("parquet", data_files=names, split="train", cache_dir=str(tmp_path / "c"))
    assert loaded["id"][:] == ids
    assert loaded["tags"][5] == ["x"]
    assert list(pandas.concat(map(pandas.read_parquet, names))["id"]) == ids
    assert pa.parquet.read_table(names)["note"].to_pylist() == [None] * 5 + ["x"]


@pytest.fixture(scope="module")
def most(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of two rows with as many candidates as a run can be told, each as long as positions allow."""
    assert ResultSettings(num_candidates=MAX_CANDIDATES)
    with pytest.raises(ValueError, match="num_candidates"):
        ResultSettings(num_candidates=MAX_CANDIDATES + 1)
    items = [{**candidate(k, -k, [8191] * 608), "rank": k + 1} for k in range(MAX_CANDIDATES)]
    rows = [
        {"id": name, "text": "so it is", "voice_key": "v", "seed": 0, "candidates": items} for name in "ab"
    ]
    folder = tmp_path_factory.mktemp("most")
    OutputFolder(str(folder)).write_table("data", "a.parquet", data_table(rows))
    lines = [
        {"id": name, "text": "so it is", "speech_ids": [item["speech_ids"] for item in items]}
        for name in "ab"
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(("place", "payload"), [("data", STORED_PAYLOAD), ("m.jsonl", SPEECH_PAYLOAD)])
def test_what_one_limit_lets_in_another_does_not_refuse(
    most: Path, checkpoint: Path, place: str, payload: Payload
) -> None:
    """Ranked again from an output, and as a manifest of JSON: no row of them is an error."""
    opened, index = scan(open_manifest((str(most / place),), payload))
    assert len(index.ids) == 2
    run = Run((str(most / place),), str(most), str(checkpoint), RankingSettings())
    work = Work(run, opened, describe_checkpoint(str(checkpoint)), OutputFolder(str(most)), None)
    read, validate, *_ = stages_of(run)
    slices = make_plan(index, np.arange(2), 2).slices_of(0)
    table = Chain([read, validate], work)(slices)
    assert table["error"].null_count == 2, table["error"].to_pylist()
    items, again = table["speech_ids"]
    assert len(items) == len(again) == MAX_CANDIDATES
    last = {"candidate": MAX_CANDIDATES - 1, "finished": True, "speech_ids": [8191] * 608}
    assert items[-1].as_py() == last


def test_the_most_candidates_can_be_taken_over(most: Path) -> None:
    """By a run that extends this one."""
    stored = open_stored(OutputFolder(str(most)), MAX_CANDIDATES)
    rows = pa.table({"id": ["a"], "text": ["so it is"], "voice_key": ["v"], "error": pa.nulls(1)})
    (found,) = stored.attach(rows)["stored"]
    assert len(found) == MAX_CANDIDATES
