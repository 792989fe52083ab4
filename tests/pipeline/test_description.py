"""run.json: which runs may continue an output, and which fields are named when they may not."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from clvp.sampling import SamplingParams
from pipeline.checkpoint import Checkpoint
from pipeline.description import describe, differences, read_description, settle, settle_engine
from pipeline.errors import RunError
from pipeline.output.folder import OutputFolder
from pipeline.replay import from_json
from pipeline.settings import ExecutionSettings, ResultSettings, ScoringSettings

SETTINGS = ResultSettings()
CHECKPOINT = Checkpoint("/models/a", {"config.json": "aa", "model.safetensors": "bb"})
COLUMNS = pa.schema([("speaker", pa.string())])
FACTS = {"device": "NVIDIA H200", "quantum": 256, "torch": "2.11.0"}


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    return OutputFolder(str(tmp_path))


def test_the_same_run_continues_wherever_manifest_and_model_lie_now(output: OutputFolder) -> None:
    first = settle(output, describe((SETTINGS,), CHECKPOINT, COLUMNS, ["/data/m.csv"]))
    elsewhere = dataclasses.replace(CHECKPOINT, location="s3://models/a")
    again = settle(output, describe((SETTINGS,), elsewhere, COLUMNS, ["s3://data/m.csv"]))
    assert again == first
    assert first["about"]["manifest"] == ["/data/m.csv"]


@pytest.mark.parametrize(
    ("settings", "checkpoint", "columns", "expected"),
    [
        (
            ResultSettings(sampling=SamplingParams(temperature=0.9, penalized_tokens=(1,))),
            CHECKPOINT,
            COLUMNS,
            "settings.ResultSettings.sampling.temperature: 0.8 there, 0.9 here",
        ),
        (
            ResultSettings(scoring=ScoringSettings(scoring_length=600)),
            CHECKPOINT,
            COLUMNS,
            "settings.ResultSettings.scoring.scoring_length: 500 there, 600 here",
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
    settle(output, describe((SETTINGS,), CHECKPOINT, COLUMNS, ["m.csv"]))
    output.write_table("_parts", "a.parquet", pa.table({"id": ["a"]}))
    with pytest.raises(RunError) as caught:
        settle(output, describe((settings,), checkpoint, columns, ["m.csv"]))
    assert f"({expected}): use them again, or another output" in str(caught.value)


def test_a_run_that_has_stored_nothing_binds_nobody(output: OutputFolder) -> None:
    settle(output, describe((SETTINGS,), CHECKPOINT, COLUMNS, ["m.csv"]))
    other = describe((ResultSettings(audio_seconds=3.0),), CHECKPOINT, COLUMNS, ["m.csv"])
    assert settle(output, other) == read_description(output) == other


def test_the_engine_is_recorded_once_and_then_must_be_the_same(output: OutputFolder) -> None:
    description = settle(output, describe((SETTINGS,), CHECKPOINT, COLUMNS, ["m.csv"]))
    settle_engine(output, description, FACTS)
    settle_engine(output, description, FACTS)
    stored = read_description(output)
    assert stored is not None
    assert stored["engine"] == FACTS
    assert settle(output, describe((SETTINGS,), CHECKPOINT, COLUMNS, ["m.csv"])) == stored
    with pytest.raises(RunError, match=r"engine\.device: 'NVIDIA H200' there, 'NVIDIA L40S' here"):
        settle_engine(output, description, FACTS | {"device": "NVIDIA L40S"})
    assert read_description(output) == stored


def test_settings_of_execution_are_no_part_of_it() -> None:
    """Separate by type: no field of the one is a field of the other, and a description takes one kind."""
    results = {field.name for field in dataclasses.fields(ResultSettings)}
    execution = {field.name for field in dataclasses.fields(ExecutionSettings)}
    assert not results & execution
    described = describe((SETTINGS,), CHECKPOINT, COLUMNS, ["m.csv"])
    assert set(described["settings"]["ResultSettings"]) == results


def test_every_setting_comes_back_from_json() -> None:
    settings = ResultSettings(
        num_candidates=7,
        sampling=SamplingParams(seed=5, penalized_tokens=(1, 2)),
        scoring=ScoringSettings(keep=3),
    )
    described = describe((settings,), CHECKPOINT, COLUMNS, ["m.csv"])
    assert from_json(ResultSettings, described["settings"]["ResultSettings"]) == settings
    with pytest.raises(RunError, match="does not know: colour"):
        from_json(ResultSettings, {"colour": "blue"})


def test_credentials_stay_out(output: OutputFolder) -> None:
    uri = "s3://key:secret@bucket/m.csv?endpoint_override=host&secret_key=hush"
    described = describe((SETTINGS,), dataclasses.replace(CHECKPOINT, location=uri), COLUMNS, [uri])
    assert "hush" not in str(described)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]"])
def test_a_damaged_description_is_an_error(output: OutputFolder, content: bytes) -> None:
    output.write("", "run.json", content)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        settle(output, describe((SETTINGS,), CHECKPOINT, COLUMNS, ["m.csv"]))


def test_an_unknown_engine_differs_from_none() -> None:
    described = describe((SETTINGS,), CHECKPOINT, COLUMNS, ["m.csv"])
    assert differences(described, described | {"engine": FACTS}) == []
    assert differences(described | {"engine": FACTS}, described | {"engine": FACTS | {"quantum": 8}}) == [
        "engine.quantum: 256 there, 8 here"
    ]
