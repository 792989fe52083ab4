"""Voices that belong to nobody: each row's follows from seed and id, in whatever block."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clvp.random_checkpoint import write_random_checkpoint
from clvp.sampling import SamplingParams
from clvp.waveform import WaveformParams
from pipeline.description import describe
from pipeline.errors import ManifestError, RunError
from pipeline.inputs import Inputs, find_inputs
from pipeline.output.folder import OutputFolder
from pipeline.output.publish import Files, publish
from pipeline.rows.manifest import Reading
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import select_rows
from pipeline.settings import AudioSettings, MeasuringSettings, ResultSettings, Run, ScoringSettings
from pipeline.stages import Work
from tests.pipeline.clips import write_clip, write_jsonl
from tests.pipeline.driver_only import stages_here

TEXT = "It was day, and then it was night. " * 6
ROWS = [
    {"id": "a", "text": "One.", "voice": "random"},
    {"id": "b", "text": TEXT, "voice": "random"},
    {"id": "c", "text": "Three.", "voice": "ada"},
    {"id": "d", "text": "Four.", "voice": "random & ada"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), audio=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of random and other voices, and those."""
    place = tmp_path_factory.mktemp("manifest")
    write_clip(place / "voices/ada/1.wav", 0.7)
    write_jsonl(place / "m.jsonl", ROWS)
    return place


def inputs_of(
    folder: Path, model: Path | str, seed: int = 3, measure: Sequence[str] = (), **reading: Any
) -> Inputs:
    results = ResultSettings(
        num_candidates=2,
        sampling=SamplingParams(max_new_tokens=12, seed=seed),
        scoring=ScoringSettings(scoring_length=12),
        waveform=WaveformParams(diffusion_steps=2),
        audio=AudioSettings(audio="best"),
        measuring=MeasuringSettings(tuple(measure)),
    )
    told = {"voices": str(folder / "voices"), "split_text": 100} | reading
    run = Run((str(folder / "m.jsonl"),), "out", str(model), results, reading=Reading(**told))
    return find_inputs(run, AUDIO_PAYLOAD)


def made(
    found: Inputs, output: Path, rows_per_block: int = 9, done: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """The rows of the manifest that are not done, good and bad."""
    place = OutputFolder(str(output))
    work = Work(found.run, found.manifest, found.checkpoint, place, 3)
    todo = select_rows(found.index, pa.chunked_array([done], pa.string())).todo
    publish(Files(place), [r["part"] for _, r in stages_here(work, None, found.index, todo, rows_per_block)])
    tables = [(kind, name) for kind in ("data", "errors") for name in place.parquet_files(kind)]
    return {row["id"]: row for kind, name in tables for row in place.read_table(kind, name).to_pylist()}


@pytest.fixture(scope="module")
def rows(folder: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return made(inputs_of(folder, model), tmp_path_factory.mktemp("out"))


def test_every_row_has_a_voice_of_its_own_and_the_parts_of_a_text_one(
    rows: dict[str, dict[str, Any]],
) -> None:
    keys = {name: row["voice_key"] for name, row in rows.items() if "voice_key" in row}
    assert [*keys] == ["a/0001", "b/0001", "b/0002", "c/0001"]
    assert keys["b/0001"] == keys["b/0002"]
    assert keys["a/0001"] != keys["b/0001"]
    assert [name for name, key in keys.items() if key.startswith("random-")] == ["a/0001", "b/0001", "b/0002"]
    assert rows["a/0001"]["voice"] == "random"
    assert rows["a/0001"]["candidates"][0]["speech_ids"]
    assert rows["a/0001"]["audio"]["bytes"]
    assert (rows["d/0001"]["type"], "'random' has no clips" in rows["d/0001"]["message"]) == (
        "UnknownVoice",
        True,
    )


def test_nothing_depends_on_the_block_or_on_what_was_done_before(
    rows: dict[str, dict[str, Any]], folder: Path, model: Path, tmp_path: Path
) -> None:
    assert made(inputs_of(folder, model), tmp_path / "alone", rows_per_block=1) == rows
    rest = made(inputs_of(folder, model), tmp_path / "rest", done=["a/0001", "b/0001", "c/0001", "d/0001"])
    assert rest == {"b/0002": rows["b/0002"]}


def test_the_seed_makes_other_voices(
    rows: dict[str, dict[str, Any]], folder: Path, model: Path, tmp_path: Path
) -> None:
    other = made(inputs_of(folder, model, seed=4), tmp_path)
    same = [
        name for name, row in other.items() if row.get("voice_key") == rows[name].get("voice_key", "none")
    ]
    assert same == ["c/0001"]


def test_one_option_needs_neither_a_column_nor_a_folder(
    rows: dict[str, dict[str, Any]], folder: Path, model: Path, tmp_path: Path
) -> None:
    """And a measure that wants the voice's clips gets none."""
    loudness = "tests.pipeline.fake_measures:Loudness"
    found = made(inputs_of(folder, model, voices=None, voice="random", measure=[loudness]), tmp_path)
    assert {name: row["measures"][0]["clips_s"] for name, row in found.items()} == dict.fromkeys(rows, 0)
    assert found["b/0002"]["candidates"] == rows["b/0002"]["candidates"]
    both = inputs_of(folder, model, voice="ada,random", split_text=False).index.ids.to_pylist()
    assert both == [f"{name}/{voice}" for name in "abcd" for voice in ("ada", "random")]
    alone = inputs_of(folder, model, voice="*", split_text=False).index.ids.to_pylist()
    assert alone == ["a/ada", "b/ada", "c/ada", "d/ada"]


def test_a_model_without_them_says_so(folder: Path, model: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(model, tmp_path / "bare")
    (bare / "random_voices.safetensors").unlink()
    for without in (bare, "demo"):
        with pytest.raises(
            RunError, match=r"has no random_voices\.safetensors.*clvp convert .*--random-voices"
        ):
            inputs_of(folder, without, voices=None, voice="random")
    errors = made(inputs_of(folder, bare), tmp_path / "out")
    assert [errors[name].get("type") for name in ("a/0001", "c/0001")] == ["NoRandomVoices", None]


def test_what_cannot_be(folder: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="--voice random&ada: the voice 'random' has no clips"):
        inputs_of(folder, model, voice="random&ada")
    with pytest.raises(ValueError, match="needs the folder"):
        Reading(voice="random,ada")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    write_clip(tmp_path / "voices/random/1.wav")
    with pytest.raises(ManifestError, match="random is the voice that belongs to nobody"):
        inputs_of(tmp_path, model)
    write_jsonl(
        tmp_path / "m.jsonl", [{"id": "a", "text": "Hi.", "audio": ["random://a", "voices/ada/1.wav"]}]
    )
    errors = made(inputs_of(tmp_path, model, voices=None, split_text=False), tmp_path / "out")
    assert errors["a"]["type"] == "MixedVoice"


def test_the_file_counts_only_where_voices_have_names(folder: Path, model: Path) -> None:
    named = [
        describe(found.run, found.checkpoint, pa.schema([])).model_files
        for found in (
            inputs_of(folder, model),
            inputs_of(folder, model, voices=None, columns="audio=voice", split_text=False),
        )
    ]
    assert ["random_voices.safetensors" in files for files in named] == [True, False]
