"""What can be done with an output that is there: try failures again, extend, rank again, replay."""

import dataclasses
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clvp.random_checkpoint import write_random_checkpoint
from clvp.sampling import SamplingParams
from clvp.waveform import WaveformParams
from jobs import replay
from pipeline.errors import RunError
from pipeline.progress import Summary
from pipeline.rows.manifest import Reading
from pipeline.run import decode, rank_again, synthesize
from pipeline.settings import (
    ExecutionSettings,
    MeasuringSettings,
    Pool,
    RankingSettings,
    ResultSettings,
    Run,
)
from tests.pipeline.clips import write_clip, write_jsonl
from tests.pipeline.driver_only import without_ray

pytestmark = pytest.mark.slow

ROWS = 24
CANDIDATES = 4
SETTINGS = ResultSettings(num_candidates=CANDIDATES, sampling=SamplingParams(max_new_tokens=16, seed=3))
EXECUTION = ExecutionSettings(
    rows_per_block=8,
    samplers=Pool(1, 1, num_gpus=0),
    rankers=Pool(1, 1, num_gpus=0),
    decoders=Pool(1, 1, num_gpus=0),
    torch_threads=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 24 rows; the clip of rows 5, 10, 15, 20 is missing."""
    folder = tmp_path_factory.mktemp("continuing")
    write_clip(folder / "a.wav", 0.4, 16_000)
    write_clip(folder / "b.flac", 0.5, 44_100, 2)
    rows = [
        {"id": f"r{i}", "text": f"This is text number {i}.", "audio": "a.wav" if i % 2 else "b.flac"}
        | ({"audio": "late.wav"} if i % 5 == 0 and i else {})
        for i in range(ROWS)
    ]
    write_jsonl(folder / "m.jsonl", rows)
    return folder


@pytest.fixture
def here() -> Iterator[None]:
    """Runs in this process: what becomes of an output that is there is up to the driver and the stages."""
    with without_ray():
        yield


def run(folder: Path, output: Path, checkpoint: Path, settings: ResultSettings = SETTINGS, **job: Any) -> Any:
    return synthesize(
        Run((str(folder / "m.jsonl"),), str(output), str(checkpoint), settings, EXECUTION, **job)
    )


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(output / "data").to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def errors_of(output: Path) -> dict[str, dict[str, Any]]:
    files = list((output / "errors").glob("*.parquet"))
    return {row["id"]: row for file in files for row in pq.read_table(file).to_pylist()}


@pytest.mark.usefixtures("here")
def test_a_book_in_two_voices_is_continued_remade_and_replayed(
    checkpoint: Path, tmp_path: Path, replayed: Callable[..., tuple[int, str, str]]
) -> None:
    """Rows that are made of others are done, changed and replayed by their own ids."""
    for name in ("ada/1", "ada/2", "bob/1"):
        write_clip(tmp_path / f"voices/{name}.wav", 0.4, 16_000)
    book = tmp_path / "book.txt"
    lines = ["It was day.", "It was night, and nobody was there.", "It was day again."]
    output = tmp_path / "out"

    def spoken(text: list[str], split_text: int | bool = 20, redo_changed: bool = False) -> Summary:
        book.write_text("\n\n".join(text))
        reading = Reading(voices=str(tmp_path / "voices"), voice="ada,bob", split_text=split_text)
        where = ((str(book),), str(output), str(checkpoint))
        return synthesize(Run(*where, SETTINGS, EXECUTION, reading, redo_changed=redo_changed))

    assert spoken(lines).totals.rows == 8
    first = rows_of(output)
    assert {*first} == {f"book/{voice}/000{n}" for voice in ("ada", "bob") for n in (1, 2, 3, 4)}
    assert {row["voice"] for row in first.values()} == {"ada", "bob"}
    assert len({(row["voice"], row["voice_key"]) for row in first.values()}) == 2
    assert spoken(lines).totals.rows == 0, "all is done"
    changed = spoken([*lines[:2], "The end."], redo_changed=True)
    assert (changed.totals.rows, changed.done_before) == (2, 6)
    after = rows_of(output)
    assert after["book/ada/0003"] == first["book/ada/0003"]
    assert after["book/ada/0004"]["text"] == "The end."
    with pytest.raises(RunError, match="part"):
        spoken(lines, split_text=False)
    book.write_text("\n\n".join([*lines[:2], "The end."]))
    moved = (tmp_path / "voices").rename(tmp_path / "elsewhere")
    code, _, errors = replayed("--output", str(output), "--id", "book/bob/0004", "--voices", str(moved))
    assert (code, errors) == (0, "")


def with_scores(settings: ResultSettings, **scoring: Any) -> ResultSettings:
    return dataclasses.replace(settings, scoring=dataclasses.replace(settings.scoring, **scoring))


@pytest.fixture(scope="module")
def finished(
    ray_instance: None, folder: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("finished")
    summary = run(folder, output, checkpoint)
    assert (summary.totals.rows, summary.totals.failed) == (20, 4)
    return output


@pytest.mark.usefixtures("here")
def test_failed_rows_are_tried_again_only_when_told_to(
    finished: Path, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    before = rows_of(output)
    again = run(folder, output, checkpoint)
    assert (again.totals.rows, again.totals.failed, again.failed_before) == (0, 0, 4)
    retried = run(folder, output, checkpoint, retry_failed=True)
    assert (retried.totals.rows, retried.totals.failed, retried.done_before) == (0, 4, 20)
    assert {row_id: row["attempt"] for row_id, row in errors_of(output).items()} == {
        f"r{i}": 2 for i in (5, 10, 15, 20)
    }
    write_clip(folder / "late.wav", 0.3, 48_000)
    try:
        mended = run(folder, output, checkpoint, retry_failed=True)
    finally:
        (folder / "late.wav").unlink()
    assert (mended.totals.rows, mended.totals.failed) == (4, 0)
    assert errors_of(output) == {}
    after = rows_of(output)
    assert len(after) == ROWS
    assert {row_id: after[row_id] for row_id in before} == before, "what was done is as it was"


MORE = dataclasses.replace(SETTINGS, num_candidates=7)


@pytest.fixture(scope="module")
def whole(
    folder: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The rows of a run that had all seven candidates from the start."""
    output = tmp_path_factory.mktemp("whole")
    with without_ray():
        run(folder, output, checkpoint, MORE)
    return rows_of(output)


def test_a_run_that_extends_another_gives_what_one_from_the_start_gives(
    finished: Path, whole: dict[str, dict[str, Any]], folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """And stands on the stored candidates: where those have other tokens, other tokens are in the result."""
    changed = tmp_path / "changed"
    shutil.copytree(finished, changed)
    (file,) = (changed / "data").glob("*.parquet")
    table = pq.read_table(file)
    rows = {row["id"]: row["candidates"] for row in table.select(["id", "candidates"]).to_pylist()}
    others = sorted(rows)[:5]
    column = [[c | {"speech_ids": [7, 7]} for c in row] if i in others else row for i, row in rows.items()]
    place = table.column_names.index("candidates")
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(column, field.type)), file)
    extended = run(folder, tmp_path / "extended", checkpoint, MORE, extend=str(changed))
    assert extended.totals.candidates == 20 * 7
    found = rows_of(tmp_path / "extended")
    assert {i: row for i, row in found.items() if i not in others} == {
        i: row for i, row in whole.items() if i not in others
    }, "tokens, order and scores"
    for row_id in others:
        tokens = {c["candidate"]: c["speech_ids"] for c in found[row_id]["candidates"]}
        originals = {c["candidate"]: c["speech_ids"] for c in whole[row_id]["candidates"]}
        assert all(tokens[i] == [7, 7] for i in range(CANDIDATES))
        assert all(tokens[i] == originals[i] for i in range(CANDIDATES, 7))


@pytest.mark.usefixtures("here")
def test_the_best_of_the_kept_and_the_new_are_the_best_of_all(
    whole: dict[str, dict[str, Any]], folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    few = with_scores(SETTINGS, keep=2)
    run(folder, tmp_path / "few", checkpoint, few)
    more = dataclasses.replace(few, num_candidates=7)
    run(folder, tmp_path / "extended", checkpoint, more, extend=str(tmp_path / "few"))
    found = rows_of(tmp_path / "extended")
    assert found.keys() == whole.keys()
    for row_id, row in found.items():
        best = whole[row_id]["candidates"][:2]
        assert [c["speech_ids"] for c in row["candidates"]] == [c["speech_ids"] for c in best]
        assert [c["candidate"] for c in row["candidates"]] == [c["candidate"] for c in best]
        scores = [c["score"] for c in best]
        assert [c["score"] for c in row["candidates"]] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dataclasses.replace(SETTINGS, num_candidates=2), "has 4 candidates a row, more than 2"),
        (
            dataclasses.replace(SETTINGS, num_candidates=9, audio_seconds=3.0),
            r"settings\.audio_seconds: 6\.0 there, 3\.0 here",
        ),
    ],
)
def test_what_cannot_be_extended(
    finished: Path, folder: Path, checkpoint: Path, tmp_path: Path, settings: ResultSettings, expected: str
) -> None:
    with pytest.raises(RunError, match=expected):
        run(folder, tmp_path / "out", checkpoint, settings, extend=str(finished))
    with pytest.raises(RunError, match="an output of its own"):
        run(folder, finished, checkpoint, extend=str(finished))
    with pytest.raises(RunError, match=r"no run\.json"):
        run(folder, tmp_path / "out", checkpoint, extend=str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_finished_output_is_ranked_again_with_another_model(
    finished: Path, checkpoint: Path, tmp_path: Path
) -> None:
    other = write_random_checkpoint(tmp_path / "other", seed=1)
    before = rows_of(finished)
    for model, name, where in ((checkpoint, "same", without_ray()), (other, "different", nullcontext())):
        again = Run((), str(tmp_path / name), str(model), RankingSettings(), EXECUTION)
        with where:
            summary = rank_again(again, str(finished))
        assert (summary.totals.rows, summary.totals.candidates) == (20, 80)
    assert _ranking(rows_of(tmp_path / "same")) == _ranking(before)
    different = rows_of(tmp_path / "different")
    assert _ranking(different) != _ranking(before)
    for row_id, row in different.items():
        tokens = {c["candidate"]: c["speech_ids"] for c in row["candidates"]}
        assert tokens == {c["candidate"]: c["speech_ids"] for c in before[row_id]["candidates"]}
        assert row["seed"] == 3


def _ranking(rows: dict[str, dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    return {i: [(c["candidate"], c["score"]) for c in row["candidates"]] for i, row in rows.items()}


@pytest.fixture
def replayed(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the job; gives its exit code and what it prints to stdout and stderr."""

    def run_replay(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = replay.main(["--torch-threads", "1", *arguments])
        return code, *capsys.readouterr()

    return run_replay


def test_replaying_five_random_rows_finds_the_same_tokens(finished: Path) -> None:
    """In a process of its own, without Ray."""
    chosen = random.Random(0).sample(sorted(rows_of(finished)), 5)
    command = [sys.executable, "-m", "jobs.replay", "--torch-threads", "1", "--output", str(finished)]
    done = subprocess.run([*command, "--id", *chosen], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.endswith("tokens, identical") for line in lines) == 5 * CANDIDATES
    for row_id in chosen:
        assert f"row {row_id}: 4 of 4 candidates identical" in lines


def test_tokens_become_sound_and_are_measured_later_and_replayed_with_both(
    finished: Path, tmp_path: Path, replayed: Callable[..., tuple[int, str, str]]
) -> None:
    """With the same model, to which what makes sound was added.

    A measure of one's own is code, which run.json alone is not trusted to name.
    """
    model = write_random_checkpoint(tmp_path / "model", audio=True)
    loudness = "tests.pipeline.fake_measures:Loudness"
    measuring = MeasuringSettings((loudness,), rank_by="-loud", keep_if="loud > 0")
    told = ResultSettings(waveform=WaveformParams(diffusion_steps=2), measuring=measuring)
    summary = decode(Run((), str(tmp_path / "out"), str(model), told, EXECUTION), str(finished))
    assert (summary.totals.rows, summary.totals.failed) == (20, 4)
    before, after = rows_of(finished), rows_of(tmp_path / "out")
    for row_id, row in after.items():
        assert by_number(row["candidates"]) == by_number(before[row_id]["candidates"])
        assert row["audio"]["bytes"]
        assert len(row["more_audio"]) == CANDIDATES - 1
        order = [
            (not candidate["finished"], measured["loud"])
            for candidate, measured in zip(row["candidates"], row["measures"], strict=True)
        ]
        assert len(order) == CANDIDATES
        assert order == sorted(order)
    again = ("--output", str(tmp_path / "out"), "--id", "r1")
    code, shown, errors = replayed(*again, "r2", "--measure", loudness)
    assert code == 0, shown + errors
    assert "not as it was" not in shown
    assert "audio" not in shown, "nothing differs"
    assert "1 of 1 candidates identical" in replayed(*again, "--measure", loudness, "--candidate", "2")[1]
    code, _, untrusted = replayed(*again)
    assert code == 1
    assert f"run.json names the code {loudness}: name it too (--measure) if you trust it" in untrusted


def by_number(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order in which they were sampled, not that of their ranks."""
    return sorted(({**c, "rank": None} for c in candidates), key=lambda c: c["candidate"])


def test_a_replay_says_where_the_tokens_part_and_which_fact_differs(
    finished: Path, tmp_path: Path, replayed: Callable[..., tuple[int, str, str]]
) -> None:
    other = write_random_checkpoint(tmp_path / "other", seed=1)
    rows = [{"id": "r1", "text": "This is text number 1.", "audio": "x.wav"}]
    write_clip(tmp_path / "x.wav", 0.7)
    write_jsonl(tmp_path / "moved.jsonl", rows)
    moved = ("--model", str(other), "--manifest", str(tmp_path / "moved.jsonl"))
    code, shown, _ = replayed("--output", str(finished), "--id", "r1", "--candidate", "2", *moved)
    assert code == 1
    assert "candidate   2: parts at token 0: " in shown
    assert "  model_files.model.safetensors: " in shown
    assert "  voice_key: " in shown
    code, _, failed = replayed("--output", str(finished), "--id", "r5")
    assert code == 1
    assert "row 'r5' has failed in stage audio: AudioNotFound" in failed
    unknown = replayed("--output", str(finished), "--id", "r1", "--candidate", "9")[2]
    assert "row 'r1' has no candidate 9; stored are [0, 1, 2, 3]" in unknown
