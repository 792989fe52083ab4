"""A stage that is added to the list, and to nothing else, in a run that is replayed."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs import replay
from pipeline import stages
from pipeline.output.folder import OutputFolder
from pipeline.settings import AudioSettings, ExecutionSettings, Pool, RankingSettings, ResultSettings, Run
from pipeline.stages import gpu_shares, stages_of
from pipeline.stages.tokens import load_tokenizer
from tests.pipeline.own_stage_job import with_own_stage
from tests.soak.output import Stored, check_finished, read_stored
from tests.soak.processes import wait_until
from tests.soak.workload import Run as Process
from tests.soak.workload import Workload

COLUMN = "speech_per_text_token"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("ray")
def test_a_stage_of_one_s_own(
    workload: Workload,
    undisturbed: Stored,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a program of its own: workers get what its `__main__` has by value."""
    output = OutputFolder(str(tmp_path / "out"))
    with Process(workload, output.uri, command=("-m", "tests.pipeline.own_stage_job")) as run:
        wait_until(lambda: run.has_ended, 400, "the run to end")
        assert run.process.returncode == 0, run.text()
    stored = read_stored(output)
    check_finished(stored, workload)
    assert stored.data is not None
    assert undisturbed.data is not None
    assert stored.data.drop_columns(COLUMN).equals(undisturbed.data), "nothing else has changed"
    encode = load_tokenizer(str(workload.model), "tortoise").encode
    for row in stored.data.to_pylist():
        expected = [
            c["num_tokens"] / len(encode(row["text"], add_special_tokens=False)) for c in row["candidates"]
        ]
        assert row[COLUMN] == pytest.approx(expected, rel=1e-6)
    again = ["--output", output.uri, "--id", stored.done[0], "--torch-threads", "1"]
    assert replay.main(again) == 0
    assert f"  columns.{COLUMN}: " in capsys.readouterr().out
    monkeypatch.setattr(stages, "declared", with_own_stage)
    assert replay.main(again) == 0
    with_it = capsys.readouterr().out
    assert f"row {stored.done[0]}: 3 of 3 candidates identical" in with_it
    assert "not as it was" not in with_it


def test_a_stage_gets_no_column_that_none_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = stages.declared
    monkeypatch.setattr(stages, "declared", lambda run: declared(run)[1:])
    with pytest.raises(ValueError, match=r"no stage before validate gives it \['error', 'text'\]"):
        stages_of(Run((), "out", "model", RankingSettings()))


def test_heavy_columns_travel_no_further_than_they_are_used() -> None:
    found = stages_of(Run((), "out", "model", ResultSettings()))
    later = {stage.name: stage.later for stage in found}
    assert "audio" in later["validate"]
    assert later["audio"] >= {"voice", "voice_key", "input_ids"}
    assert "audio" not in later["audio"]
    assert "voice" not in later["sample"], "unless there is to be sound"
    sounding = stages_of(Run((), "out", "model", ResultSettings(audio=AudioSettings(audio="best"))))
    later_then = {stage.name: stage.later for stage in sounding}
    assert later_then["rank"] >= {"voice", "spoken_voice", "input_ids"}
    assert not later_then["waveform"] & {"voice", "spoken_voice", "input_ids"}
    own = {"id", "text", "source", "row_digest", "error", "candidates", "voice_key", "engine"}
    assert later["rank"] == own


@pytest.mark.parametrize(
    ("sampler", "ranker", "own", "expected"),
    [
        (None, None, None, (0.75, 0.25)),
        (0.9, None, None, (0.9, 0.1)),
        (1, None, None, (1, 0.25)),  # the rankers have GPUs of their own
        (0, None, None, (0, 0.25)),
        (None, None, 0.25, (0.6, 0.2, 0.2)),
        (0.5, 0.3, 1.0, (0.5, 0.3, 0.2)),
    ],
)
def test_shares_of_a_gpu_are_one_at_most_unless_told(
    sampler: float | None, ranker: float | None, own: float | None, expected: tuple[float, ...]
) -> None:
    execution = ExecutionSettings(samplers=Pool(num_gpus=sampler), rankers=Pool(num_gpus=ranker))
    found = stages_of(Run((), "out", "model", ResultSettings(), execution))
    if own is not None:
        third = replace(found[-2], name="own", pool=Pool(), gpu_share=own)
        found.insert(-1, third)
    shares = gpu_shares(found)
    assert tuple(shares[name] for name in ("sample", "rank", "own")[: len(expected)]) == expected
