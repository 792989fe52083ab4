"""run.json: which runs may continue an output, and which fields are named when they may not."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clvp.sampling import SamplingParams
from pipeline.checkpoint import Checkpoint
from pipeline.description import (
    SCHEMA_VERSION,
    Description,
    describe,
    differences,
    from_json,
    load,
    retype_empty,
    settle,
    settle_engine,
)
from pipeline.errors import RunError
from pipeline.output.folder import OutputFolder
from pipeline.rows.manifest import Reading
from pipeline.settings import ExecutionSettings, RankingSettings, ResultSettings, Run, ScoringSettings

SETTINGS = ResultSettings()
CHECKPOINT = Checkpoint("/models/a", {"config.json": "aa", "model.safetensors": "bb"})
COLUMNS = pa.schema([("speaker", pa.string())])
FACTS = {"device": "NVIDIA H200", "quantum": 256, "torch": "2.11.0"}


def told(
    settings: ResultSettings | RankingSettings = SETTINGS,
    checkpoint: Checkpoint = CHECKPOINT,
    columns: pa.Schema = COLUMNS,
    manifest: str = "m.csv",
) -> Description:
    return describe(Run((manifest,), "out", "model", settings), checkpoint, columns)


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    return OutputFolder(str(tmp_path))


def test_the_same_run_continues_wherever_manifest_and_model_lie_now(output: OutputFolder) -> None:
    first = settle(output, told(manifest="/data/m.csv"))
    elsewhere = dataclasses.replace(CHECKPOINT, location="s3://models/a")
    again = settle(output, told(checkpoint=elsewhere, manifest="s3://data/m.csv"))
    assert again == first
    assert first.about.manifest == ("/data/m.csv",)


def test_folders_of_voices_are_told_without_what_opens_them() -> None:
    reading = Reading(voices="s3://user:hush@bucket/voices?region=x", voice="ada", split_text=True)
    about = describe(Run(("m.csv",), "out", "model", SETTINGS, reading=reading), CHECKPOINT, COLUMNS).about
    assert Reading(**about.reading) == dataclasses.replace(reading, voices="s3://bucket/voices")


@pytest.mark.parametrize(
    ("settings", "checkpoint", "columns", "expected"),
    [
        (
            ResultSettings(sampling=SamplingParams(temperature=0.9, penalized_tokens=(1,))),
            CHECKPOINT,
            COLUMNS,
            "settings.sampling.temperature: 0.8 there, 0.9 here",
        ),
        (
            ResultSettings(scoring=ScoringSettings(scoring_length=600)),
            CHECKPOINT,
            COLUMNS,
            "settings.scoring.scoring_length: 500 there, 600 here",
        ),
        (
            SETTINGS,
            Checkpoint("/models/a", {"config.json": "aa", "model.safetensors": "cc"}),
            COLUMNS,
            "model_files.model.safetensors: 'bb' there, 'cc' here",
        ),
        (
            SETTINGS,
            CHECKPOINT,
            pa.schema([("speaker", pa.int64())]),
            "columns.speaker: 'string' there, 'int64' here",
        ),
    ],
)
def test_another_run_is_refused_with_the_field_that_differs(
    output: OutputFolder, settings: ResultSettings, checkpoint: Checkpoint, columns: pa.Schema, expected: str
) -> None:
    settle(output, told())
    output.write_table("_parts", "a.parquet", pa.table({"id": ["a"]}))
    with pytest.raises(RunError) as caught:
        settle(output, told(settings, checkpoint, columns))
    assert f"({expected}): use them again, or another output" in str(caught.value)


def test_new_columns_are_told_in_one_sentence_with_the_way_out(output: OutputFolder) -> None:
    settle(output, told())
    output.write_table("_parts", "a.parquet", pa.table({"id": ["a"]}))
    with pytest.raises(RunError) as caught:
        settle(output, told(columns=pa.schema([*COLUMNS, ("mood", pa.string()), ("age", pa.int8())])))
    assert str(caught.value) == (
        "the manifest has new columns ('age', 'mood'), which the rows in "
        f"{output.uri} lack: leave them out, or use another output"
    )


@pytest.mark.parametrize(
    ("stored", "now", "after"),
    [
        (pa.array([None, None], pa.string()), pa.int64(), [None, None]),
        (pa.array([None, None], pa.null()), pa.string(), [None, None]),
        (pa.array([[], None], pa.list_(pa.string())), pa.list_(pa.int8()), [[], None]),
        (pa.array([None, None], pa.string()), pa.struct([("a", pa.int8())]), [None, None]),
        (pa.array([None, "x"], pa.string()), pa.int64(), None),
        (pa.array([[], [None]], pa.list_(pa.string())), pa.list_(pa.int8()), [[], [None]]),
    ],
)
def test_a_column_without_values_takes_the_type_that_it_has_now(
    output: OutputFolder, stored: pa.Array, now: pa.DataType, after: list[Any] | None
) -> None:
    """In what is published and what is not. With a value it is a conflict, and nothing is touched."""
    settle(output, told(columns=pa.schema([("speaker", stored.type)])))
    output.write_table("data", "000001.parquet", pa.table({"id": ["a", "b"], "speaker": stored}))
    output.write_table("_parts", "p.parquet", pa.table({"id": ["c", "d"], "extra.speaker": stored}))
    schema = pa.schema([("speaker", now)])
    described = told(columns=schema)
    retype_empty(output, described, schema)
    if after is None:
        with pytest.raises(RunError, match=r"columns\.speaker: 'string' there, 'int64' here"):
            settle(output, described)
        assert output.schema("data", "000001.parquet").field("speaker").type == stored.type
        return
    assert settle(output, described).columns == {"speaker": str(now)}
    for folder, name, column in (
        ("data", "000001.parquet", "speaker"),
        ("_parts", "p.parquet", "extra.speaker"),
    ):
        table = output.read_table(folder, name)
        assert (table.schema.field(column).type, table[column].to_pylist()) == (now, after)


def test_a_run_that_has_stored_nothing_binds_nobody(output: OutputFolder) -> None:
    settle(output, told())
    other = told(ResultSettings(audio_seconds=3.0))
    assert settle(output, other) == load(output) == other


def test_the_engine_is_recorded_once_and_then_must_be_the_same(output: OutputFolder) -> None:
    description = settle(output, told())
    description = settle_engine(output, description, FACTS)
    assert settle_engine(output, description, FACTS) == description
    stored = load(output)
    assert stored is not None
    assert stored.engine == FACTS
    assert settle(output, told()) == stored
    with pytest.raises(RunError, match=r"engine\.device: 'NVIDIA H200' there, 'NVIDIA L40S' here"):
        settle_engine(output, description, FACTS | {"device": "NVIDIA L40S"})
    assert load(output) == stored


def test_settings_of_execution_are_no_part_of_it() -> None:
    """Separate by type: no field of the one is a field of the other, and a description takes one kind."""
    results = {field.name for field in dataclasses.fields(ResultSettings)}
    execution = {field.name for field in dataclasses.fields(ExecutionSettings)}
    assert not results & execution
    described = told()
    assert set(described.settings) == results


def test_every_setting_comes_back_from_json() -> None:
    settings = ResultSettings(
        num_candidates=7,
        sampling=SamplingParams(seed=5, penalized_tokens=(1, 2)),
        scoring=ScoringSettings(keep=3),
    )
    assert told(settings).results == settings
    ranking = RankingSettings(scoring=ScoringSettings(keep=3))
    assert told(ranking).results == ranking
    with pytest.raises(RunError, match="does not know: colour"):
        from_json(ResultSettings, {"colour": "blue"})


def test_credentials_stay_out(output: OutputFolder) -> None:
    uri = "s3://key:secret@bucket/m.csv?endpoint_override=host&secret_key=hush"
    described = told(checkpoint=dataclasses.replace(CHECKPOINT, location=uri), manifest=uri)
    assert "hush" not in str(described)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"schema_version": 4}', b'{"schema_version": 4, "settings": []}']
)
def test_a_damaged_description_is_an_error(output: OutputFolder, content: bytes) -> None:
    output.write("", "run.json", content)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        settle(output, told())


@pytest.mark.parametrize("version", [1, 2, SCHEMA_VERSION + 1, None])
def test_a_description_of_another_version_is_refused(output: OutputFolder, version: int | None) -> None:
    """In version 2 the settings lay under the name of their class."""
    value = {
        "schema_version": version,
        "settings": {"ResultSettings": {"num_candidates": 16}},
        "engine": None,
    }
    output.write("", "run.json", json.dumps(value).encode())
    with pytest.raises(RunError) as caught:
        settle(output, told())
    assert f"schema version {version}, and this version reads {SCHEMA_VERSION}: go on with" in str(
        caught.value
    )


def test_fields_have_stable_names(output: OutputFolder) -> None:
    settle(output, told())
    stored = json.loads(Path(output.file("", "run.json")).read_text())
    assert list(stored) == [field.name for field in dataclasses.fields(Description)]
    assert (stored["schema_version"], stored["job"]) == (4, "synthesize")
    own = [
        "model",
        "num_candidates",
        "sampling",
        "scoring",
        "waveform",
        "audio",
        "measuring",
        "audio_seconds",
    ]
    assert list(stored["settings"]) == own
    assert list(told(RankingSettings()).settings) == ["model", "scoring"]


def test_an_unknown_engine_differs_from_none() -> None:
    unknown = told()
    known = dataclasses.replace(unknown, engine=FACTS)
    assert differences(unknown, known) == []
    assert differences(known, dataclasses.replace(unknown, engine=FACTS | {"quantum": 8})) == [
        "engine.quantum: 256 there, 8 here"
    ]
