"""The stages that make sound, one after the other in this process, with the golden checkpoint."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from clvp.codec.speech import CODEC_CONFIG_FILE, CODEC_FILE
from clvp.sampling import SamplingParams
from clvp.tortoise import convert_tortoise
from clvp.waveform import WaveformParams, load_waveform_models
from clvp.waveform.convert import convert_waveform
from clvp.waveform.files import DIFFUSION_FILE, VOCODER_FILE, WAVEFORM_CONFIG_FILE
from pipeline.checkpoint import SOUND_FILES, describe_checkpoint
from pipeline.description import describe, differing_fields
from pipeline.errors import RunError
from pipeline.inputs import decided
from pipeline.output.folder import OutputFolder
from pipeline.output.publish import Files, publish
from pipeline.report import write_report
from pipeline.rows.manifest import open_manifest
from pipeline.rows.normalise import scan
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import select_rows
from pipeline.settings import AudioSettings, ResultSettings, Run, ScoringSettings
from pipeline.stages import Work
from pipeline.stages.rank import Ranker, Scored
from pipeline.stages.waveform import encoded, file_name
from tests.pipeline.clips import NO_IDS, write_clip, write_jsonl
from tests.pipeline.driver_only import stages_here

GOLDEN = Path(os.environ.get("CLVP_GOLDEN_DECODE", Path(__file__).parents[1] / "data" / "golden_decode"))
TEXTS = ["One text.", "Another, which is longer.", "A third one.", "Silence follows."]


@pytest.fixture(scope="module")
def golden_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    heads = {"decoder_heads": 1, "encoder_heads": 1}
    convert_tortoise(GOLDEN / "autoregressive.pth", GOLDEN / "clvp2.pth", folder, **heads)
    convert_waveform(GOLDEN / "diffusion_decoder.pth", GOLDEN / "vocoder.pth", folder)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good rows and one whose clip is silent."""
    folder = tmp_path_factory.mktemp("manifest")
    write_clip(folder / "a.wav", 0.7, 22_050)
    write_clip(folder / "b.flac", 5.0, 44_100)
    soundfile.write(folder / "silent.wav", np.zeros(22_050), 22_050)
    clips: list[Any] = ["a.wav", ["b.flac", "a.wav"], "b.flac", "silent.wav"]
    rows = [{"id": f"r/{i}", "text": text, "audio": clips[i]} for i, text in enumerate(TEXTS)]
    return write_jsonl(folder / "m.jsonl", rows)


def settings_of(limit: int = 20, **audio: Any) -> ResultSettings:
    return ResultSettings(
        num_candidates=4,
        sampling=SamplingParams(max_new_tokens=limit, seed=3),
        scoring=ScoringSettings(scoring_length=limit),
        waveform=WaveformParams(diffusion_steps=3),
        audio=AudioSettings(**audio),
    )


def made(
    manifest: Path, model: Path, output: Path, settings: ResultSettings, rows_per_block: int = 9
) -> list[dict[str, Any]]:
    """The rows that a run stores."""
    checkpoint = describe_checkpoint(str(model))
    run = decided(Run((str(manifest),), str(output), str(model), settings), checkpoint)
    opened, index = scan(open_manifest(run.manifest, AUDIO_PAYLOAD))
    folder = OutputFolder(str(output))
    work = Work(run, opened, checkpoint, folder, settings.sampling.seed)
    todo = select_rows(index, NO_IDS).todo
    publish(Files(folder), [r["part"] for _, r in stages_here(work, None, index, todo, rows_per_block)])
    tables = [folder.read_table("data", name) for name in folder.parquet_files("data")]
    return pa.concat_tables(tables).sort_by("id").to_pylist()


def errors_of(output: Path) -> list[tuple[str, str, str]]:
    folder = OutputFolder(str(output))
    rows = [row for n in folder.parquet_files("errors") for row in folder.read_table("errors", n).to_pylist()]
    return [(row["id"], row["stage"], row["type"]) for row in rows]


@pytest.fixture(scope="module")
def rows(manifest: Path, golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return made(manifest, golden_checkpoint, tmp_path_factory.mktemp("out") / "out", settings_of(audio="all"))


def samples(audio: dict[str, Any]) -> np.ndarray:
    found, rate = soundfile.read(io.BytesIO(audio["bytes"]))
    assert rate == 24_000
    return found


def test_every_candidate_has_its_sound_and_measures(rows: list[dict[str, Any]]) -> None:
    assert [row["id"] for row in rows] == ["r/0", "r/1", "r/2"]
    for row in rows:
        others = row["more_audio"]
        assert [item["rank"] for item in others] == [2, 3, 4]
        by_rank = [c["candidate"] for c in row["candidates"]]
        assert [item["candidate"] for item in others] == by_rank[1:]
        for audio, measures in [(row["audio"], row["audio_measures"])] + [(o["audio"], o) for o in others]:
            waveform = samples(audio)
            assert measures["duration_s"] == pytest.approx(len(waveform) / 24_000)
            assert measures["peak"] == pytest.approx(np.abs(waveform).max(), abs=1e-4)
            assert 0 <= measures["clipped_share"] <= 1
        names = [row["audio"]["path"], *(item["audio"]["path"] for item in others)]
        assert names == [f"{row['id'].replace('/', '%2F')}-{candidate}.flac" for candidate in by_rank]


def test_a_row_s_sound_does_not_depend_on_its_block(
    manifest: Path, golden_checkpoint: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    assert made(manifest, golden_checkpoint, tmp_path, settings_of(audio="all"), rows_per_block=1) == rows


def test_best_is_the_first_of_all(
    manifest: Path, golden_checkpoint: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    """What becomes sound changes no token, and the best sounds the same whoever follows."""
    best = made(manifest, golden_checkpoint, tmp_path, settings_of())
    assert "more_audio" not in best[0]
    for here, there in zip(best, rows, strict=True):
        assert here["candidates"] == there["candidates"]
        assert here["audio"]["bytes"] == there["audio"]["bytes"]
    assert errors_of(tmp_path) == [("r/3", "audio", "SilentAudio")]


def test_without_sound_the_tokens_are_the_same(
    manifest: Path, golden_checkpoint: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    silent = made(manifest, golden_checkpoint, tmp_path, settings_of(audio="none"))
    assert "audio" not in silent[0]
    assert [row["candidates"] for row in silent[:3]] == [row["candidates"] for row in rows]


def test_loose_files_hold_the_same_bytes(manifest: Path, golden_checkpoint: Path, tmp_path: Path) -> None:
    stored = made(manifest, golden_checkpoint, tmp_path, settings_of(audio=2, audio_files=True, format="wav"))
    files = {path.name: path.read_bytes() for path in (tmp_path / "audio").iterdir()}
    audio = [row["audio"] for row in stored] + [o["audio"] for row in stored for o in row["more_audio"]]
    assert files == {item["path"]: item["bytes"] for item in audio}


def test_loudness_and_fade(manifest: Path, golden_checkpoint: Path, tmp_path: Path) -> None:
    plain = made(manifest, golden_checkpoint, tmp_path / "a", settings_of(limit=40, format="wav"))
    changed = made(
        manifest,
        golden_checkpoint,
        tmp_path / "b",
        settings_of(40, format="wav", loudness=-40.0, fade_out=True),
    )
    for one, two in zip(plain, changed, strict=True):
        here, there = samples(one["audio"]), samples(two["audio"])
        assert len(here) == len(there)
        assert abs(there[-1]) < 1e-3
        assert two["audio_measures"]["rms_dbfs"] == pytest.approx(-40, abs=6)
        assert np.corrcoef(here[:-240], there[:-240])[0, 1] > 0.99


def test_datasets_shows_the_column_as_sound(manifest: Path, golden_checkpoint: Path, tmp_path: Path) -> None:
    stored = made(manifest, golden_checkpoint, tmp_path / "out", settings_of())
    files = [str(path) for path in (tmp_path / "out" / "data").iterdir()]
    found = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert found.features["audio"] == datasets.Audio(sampling_rate=24_000)
    undecoded = found.cast_column("audio", datasets.Audio(decode=False)).sort("id")
    assert [row["audio"] for row in undecoded] == [row["audio"] for row in stored]


def test_the_report_counts_the_sound(manifest: Path, golden_checkpoint: Path, tmp_path: Path) -> None:
    stored = made(manifest, golden_checkpoint, tmp_path / "out", settings_of())
    write_report(str(tmp_path / "out"), str(tmp_path / "r.html"), str(tmp_path / "r.json"))
    sound = json.loads((tmp_path / "r.json").read_text())["sound"]
    assert sound["count"] == len(stored)
    seconds = sum(row["audio_measures"]["duration_s"] for row in stored)
    assert sound["hours"] == pytest.approx(seconds / 3600)
    assert "<dt>Sound" in (tmp_path / "r.html").read_text()


def test_a_checkpoint_without_sound_ranks_tokens_and_says_so(
    manifest: Path, checkpoint: Path, tmp_path: Path
) -> None:
    described = describe_checkpoint(str(checkpoint))
    run = Run((str(manifest),), str(tmp_path), str(checkpoint), settings_of())
    assert decided(run, described).results == replace(run.results, audio=AudioSettings(audio="none"))
    with pytest.raises(RunError, match=r"has no files for sound .*clvp convert"):
        decided(replace(run, results=settings_of(audio="best")), described)


def test_run_json_names_what_the_sound_depends_on(manifest: Path, golden_checkpoint: Path) -> None:
    described = describe_checkpoint(str(golden_checkpoint))
    files = {WAVEFORM_CONFIG_FILE, DIFFUSION_FILE, VOCODER_FILE}
    assert {*files, CODEC_CONFIG_FILE, CODEC_FILE} == set(SOUND_FILES)
    told = {}
    for audio in ("best", "none"):
        run = Run((str(manifest),), "out", str(golden_checkpoint), settings_of(audio=audio))
        told[audio] = describe(run, described, pa.schema([]))
    assert set(told["best"].model_files) - set(told["none"].model_files) == files
    other = replace(settings_of(audio="best"), waveform=WaveformParams(guidance=1.0))
    changed = describe(Run((str(manifest),), "out", "m", other), described, pa.schema([]))
    assert differing_fields(told["best"].settings, changed.settings) == [
        "waveform.diffusion_steps: 3 there, 25 here",
        "waveform.guidance: 2.0 there, 1.0 here",
    ]


def test_a_mel_that_is_not_finite_is_the_row_s_error(
    manifest: Path, golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **named: Any) -> Any:
        models = load_waveform_models(*args, **named)
        for weight in models.diffusion.out[2].parameters():
            weight.data.fill_(torch.nan)
        return models

    monkeypatch.setattr("clvp.waveform.files.load_waveform_models", broken)
    with pytest.raises(pa.ArrowInvalid):  # no row is left to be read
        made(manifest, golden_checkpoint, tmp_path, settings_of())
    assert ("r/1", "waveform", "UndecodableSpeech") in errors_of(tmp_path)
    assert len(errors_of(tmp_path)) == len(TEXTS)


@pytest.mark.parametrize(("silent", "sounds"), [((2,), 3), ((0, 1, 2, 3), None)])
def test_a_candidate_that_says_nothing_costs_no_row_that_has_others(
    manifest: Path,
    golden_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    silent: tuple[int, ...],
    sounds: int | None,
) -> None:
    score = Ranker._score

    def calm(ranker: Ranker, *args: Any) -> list[Scored]:
        tokens = np.full(5, ranker.fixing_codes[0], np.uint16)
        return [
            replace(item, tokens=tokens, silent=True) if item.candidate in silent else item
            for item in score(ranker, *args)
        ]

    monkeypatch.setattr(Ranker, "_score", calm)
    if sounds is None:
        with pytest.raises(pa.ArrowInvalid):  # no row is left to be read
            made(manifest, golden_checkpoint, tmp_path, settings_of(audio="all"))
        assert ("r/1", "waveform", "NoSpeech") in errors_of(tmp_path)
        return
    for row in made(manifest, golden_checkpoint, tmp_path, settings_of(audio="all")):
        assert [item["candidate"] for item in row["candidates"]][sounds:] == list(silent)
        assert 1 + len(row["more_audio"]) == sounds


@pytest.mark.parametrize("form", ["flac", "wav", "opus"])
def test_formats(form: str) -> None:
    waveform = np.sin(np.arange(24_000) / 20).astype(np.float32) * 0.5
    content = encoded(waveform, form)
    assert content == encoded(waveform, form), "the same bytes each time"
    found, rate = soundfile.read(io.BytesIO(content))
    assert rate == 24_000
    assert len(found) == len(waveform)
    inside = slice(400, -400)  # where Opus does not begin or end
    assert np.abs(found - waveform)[inside].max() < (0.1 if form == "opus" else 1e-4)


def test_names_of_files_are_safe_and_differ() -> None:
    ids = ["a", "a/b", "..", "a%2Fb", "é", "x" * 1000, "x" * 1001, "a\0b", "-n"]
    names = [file_name(row_id, None, "flac") for row_id in ids]
    assert len(set(names)) == len(ids)
    assert all(len(name.encode()) < 255 and "/" not in name and "\0" not in name for name in names)
    assert json.dumps(names).isascii()
