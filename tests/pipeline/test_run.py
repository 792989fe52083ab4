"""Whole runs on a real Ray instance with a small random model."""

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clvp.sampling import EngineConfig, SamplingParams
from pipeline.errors import ManifestError, RunError
from pipeline.progress import Summary
from pipeline.run import rank, synthesize
from pipeline.settings import ExecutionSettings, Pool, RankingSettings, ResultSettings, Run, ScoringSettings
from tests.pipeline.clips import write_clip, write_jsonl
from tests.pipeline.driver_only import without_ray

pytestmark = pytest.mark.slow

SETTINGS = ResultSettings(num_candidates=3, sampling=SamplingParams(max_new_tokens=16, seed=3))
CPU = ExecutionSettings(
    rows_per_block=16, samplers=Pool(1, 1, num_gpus=0), rankers=Pool(1, 1, num_gpus=0), torch_threads=1
)


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voices")
    write_clip(folder / "a.wav", 0.4, 16_000)
    write_clip(folder / "b.flac", 0.5, 44_100, 2)
    write_clip(folder / "c.wav", 0.3, 48_000, subtype="PCM_24")
    write_clip(folder / "d.ogg", 0.6, 24_000)
    (folder / "broken.wav").write_bytes(b"RIFF of nothing")
    write_clip(folder / "silent.wav", 0.0)
    return folder


def good_row(voices: Path, number: int) -> dict[str, Any]:
    audio: list[Any] = ["a.wav", "b.flac", ["c.wav", "d.ogg"], "d.ogg", ["a.wav"]]
    paths = audio[number % 5]
    audio_paths = [str(voices / path) for path in paths] if isinstance(paths, list) else str(voices / paths)
    text = f"This is text number {number}, and it is no longer than that."
    return {
        "id": f"row-{number:04}",
        "text": text,
        "audio": audio_paths,
        "speaker": f"s{number % 5}",
        "n": number,
    }


def bad_rows(voices: Path) -> list[dict[str, Any] | str]:
    """Twenty rows, bad in eight ways."""
    base = good_row(voices, 0)
    ways: list[dict[str, Any]] = [
        {"audio": str(voices / "missing.wav")},
        {"audio": str(voices / "broken.wav")},
        {"audio": str(voices / "silent.wav")},
        {"text": ""},
        {"text": "too long " * 400},
        {"text": None},
        {"audio": None},
    ]
    rows: list[dict[str, Any] | str] = [base | {"id": f"bad-{i}"} | ways[i % 7] for i in range(17)]
    return [*rows, base | {"id": "row-0007"}, base | {"id": "row-0008"}, base | {"id": None}]


def stored(output: Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    rows = pq.read_table(output / "data").to_pylist()
    errors = pq.read_table(output / "errors").to_pylist() if (output / "errors").exists() else []
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}, errors


def run(manifest: Path, output: Path, checkpoint: Path, execution: ExecutionSettings = CPU) -> Summary:
    return synthesize(Run((str(manifest),), str(output), str(checkpoint), SETTINGS, execution))


@pytest.fixture(scope="module")
def manifest(voices: Path) -> Path:
    """180 good rows with the bad ones between them."""
    rows: list[Any] = [good_row(voices, i) for i in range(180)]
    for i, bad in enumerate(bad_rows(voices)):
        rows.insert(20 + 8 * i, bad)
    assert len(rows) == 200
    return write_jsonl(voices / "manifest.jsonl", rows)


@pytest.fixture(scope="module")
def finished(
    ray_instance: None, manifest: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Summary]:
    output = tmp_path_factory.mktemp("finished")
    return output, run(manifest, output, checkpoint)


def test_bad_rows_are_in_the_error_table_and_the_others_in_the_output(
    finished: tuple[Path, Summary], voices: Path
) -> None:
    output, summary = finished
    done, errors = stored(output)
    assert sorted(done) == [f"row-{i:04}" for i in range(180)]
    assert sorted(error["type"] for error in errors) == [
        *["AudioNotFound"] * 3,
        *["DuplicateId"] * 2,
        *["EmptyAudio"] * 3,
        *["EmptyText"] * 2,
        *["MissingAudio"] * 2,
        "MissingId",
        *["MissingText"] * 2,
        *["TextTooLong"] * 2,
        *["UndecodableAudio"] * 3,
    ]
    assert all(error["message"] and error["source"].startswith(str(voices)) for error in errors)
    for row in done.values():
        assert [c["rank"] for c in row["candidates"]] == [1, 2, 3]
        assert sorted(c["candidate"] for c in row["candidates"]) == [0, 1, 2]
        assert row["n"] == int(row["id"][4:])
        assert row["seed"] == 3
    totals = summary.totals
    assert (totals.rows, totals.failed, summary.rejected, totals.candidates) == (180, 17, 3, 540)
    assert totals.tokens == sum(c["num_tokens"] for row in done.values() for c in row["candidates"])
    assert 0 < totals.lanes_s <= totals.busy_s["sample"]


def test_a_finished_run_has_nothing_to_do(
    finished: tuple[Path, Summary], manifest: Path, checkpoint: Path
) -> None:
    output, _ = finished
    before = stored(output)
    again = run(manifest, output, checkpoint)
    assert (again.totals.rows, again.totals.failed, again.done_before, again.failed_before) == (0, 0, 180, 17)
    assert stored(output) == before
    hotter = dataclasses.replace(SETTINGS, sampling=dataclasses.replace(SETTINGS.sampling, temperature=0.9))
    with pytest.raises(RunError, match=r"sampling\.temperature: 0\.8 there, 0\.9 here"):
        synthesize(Run((str(manifest),), str(output), str(checkpoint), hotter, CPU))


def test_results_do_not_depend_on_how_the_run_is_executed(
    finished: tuple[Path, Summary], voices: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Other blocks, lanes and actors; in one process, then continued with more rows on logical GPUs; paths,
    then embedded audio.
    """
    every_seventh = [good_row(voices, i) for i in range(0, 180, 7)]
    with without_ray():
        run(write_jsonl(tmp_path / "first.jsonl", every_seventh[::2]), tmp_path / "out", checkpoint)
    embedded = [row | {"audio": _embedded(row["audio"])} for row in every_seventh]
    pq.write_table(pa.Table.from_pylist(embedded), tmp_path / "all.parquet", row_group_size=4)
    other = dataclasses.replace(
        CPU,
        rows_per_block=3,
        engine=EngineConfig(lanes=7),
        samplers=Pool(2, 2, num_gpus=0.75),
        rankers=Pool(1, 2, num_gpus=0.25),
        publish_bytes=1,
    )
    grown = run(tmp_path / "all.parquet", tmp_path / "out", checkpoint, other)
    assert (grown.totals.rows, grown.done_before) == (13, 13)
    expected, _ = stored(finished[0])
    found, errors = stored(tmp_path / "out")
    assert errors == []
    assert sorted(found) == [row["id"] for row in every_seventh]
    for row_id, row in found.items():
        assert _without_scores(row) == _without_scores(expected[row_id])
        scores = [c["score"] for c in expected[row_id]["candidates"]]
        assert [c["score"] for c in row["candidates"]] == pytest.approx(scores, abs=1e-5)


def _embedded(audio: str | list[str]) -> list[dict[str, Any]]:
    paths = audio if isinstance(audio, list) else [audio]
    return [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]


def _without_scores(row: dict[str, Any]) -> dict[str, Any]:
    """Nor with the digest of what the row is made from, which sees the names of clips."""
    candidates = [{k: v for k, v in c.items() if k != "score"} for c in row["candidates"]]
    return row | {"candidates": candidates, "row_digest": None}


def test_ranking_what_was_sampled_finds_the_same_scores_and_order(
    finished: tuple[Path, Summary], checkpoint: Path, tmp_path: Path
) -> None:
    sampled, _ = stored(finished[0])
    tokens = [{"id": i, "text": r["text"], "speech_ids": r["candidates"][::-1]} for i, r in sampled.items()]
    pq.write_table(pa.Table.from_pylist(tokens[:40]), tmp_path / "tokens.parquet")
    settings = RankingSettings(scoring=ScoringSettings(keep=2))
    tokens_file = str(tmp_path / "tokens.parquet")
    summary = rank(Run((tokens_file,), str(tmp_path / "ranked"), str(checkpoint), settings, CPU))
    ranked, _ = stored(tmp_path / "ranked")
    assert summary.totals.candidates == 80
    assert len(ranked) == 40
    for row_id, row in ranked.items():
        best = sampled[row_id]["candidates"][:2]
        assert [c["candidate"] for c in row["candidates"]] == [c["candidate"] for c in best]
        assert [c["score"] for c in row["candidates"]] == pytest.approx([c["score"] for c in best], abs=1e-5)
        assert row["seed"] is None


def test_a_broken_checkpoint_ends_the_run_with_one_line_and_a_mended_one_begins_it(
    ray_instance: None, voices: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """No row was stored, so nothing binds the output to the broken weights."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    manifest = write_jsonl(tmp_path / "m.jsonl", [good_row(voices, 0)])
    with pytest.raises(RunError) as caught:
        run(manifest, tmp_path / "out", broken)
    assert "model.safetensors is no readable safetensors file" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    with without_ray():
        assert run(manifest, tmp_path / "out", checkpoint).totals.rows == 1


def test_what_is_wrong_beforehand_is_found_beforehand(checkpoint: Path, voices: Path, tmp_path: Path) -> None:
    """Without Ray: an instance would be started by the first call that needs one."""
    import ray

    was_running = ray.is_initialized()
    manifest = write_jsonl(tmp_path / "m.jsonl", [good_row(voices, 0)])
    job = Run((str(manifest),), str(tmp_path / "out"), str(checkpoint), SETTINGS)
    with pytest.raises(ManifestError, match="no such file"):
        synthesize(dataclasses.replace(job, manifest=("/no/such.csv",)))
    with pytest.raises(RunError, match="no_such_model"):
        synthesize(dataclasses.replace(job, model=str(tmp_path / "no_such_model")))
    long = dataclasses.replace(
        SETTINGS, sampling=SamplingParams(max_new_tokens=700), scoring=ScoringSettings(scoring_length=700)
    )
    with pytest.raises(RunError, match="exceeds the model's 608 positions"):
        synthesize(dataclasses.replace(job, results=long))
    assert ray.is_initialized() == was_running
