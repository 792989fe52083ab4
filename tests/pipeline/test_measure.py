"""Measures and the choice by them: the stages one after the other in this process, with measures of ours."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clvp.random_checkpoint import write_random_checkpoint
from pipeline.checkpoint import describe_checkpoint
from pipeline.errors import RunError
from pipeline.inputs import check_measures, decided
from pipeline.output.folder import OutputFolder
from pipeline.output.publish import Files, publish
from pipeline.rows.manifest import open_manifest
from pipeline.rows.normalise import scan
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import make_plan, select_rows
from pipeline.settings import AudioSettings, ExecutionSettings, MeasuringSettings, ResultSettings, Run
from pipeline.stages import Chain, Work, gpu_shares, grouped, stages_of
from pipeline.stages.choose import check_formulas
from pipeline.stages.formula import Formula
from pipeline.stages.measure import Measurer, measured_field
from tests.pipeline.clips import NO_IDS, write_clip, write_jsonl
from tests.pipeline.fake_measures import Loudness
from tests.pipeline.test_waveform import errors_of, samples, settings_of

OWN = "tests.pipeline.fake_measures:"
LOUDNESS = OWN + "Loudness"
TEXTS = {"a": "One text.", "b": "Another, which is longer.", "c": "A third one."}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), audio=True)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifest")
    write_clip(folder / "a.wav", 0.7, 22_050)
    write_clip(folder / "b.flac", 1.0, 44_100)
    clips: list[Any] = ["a.wav", ["b.flac", "a.wav"], "b.flac"]
    rows = [{"id": name, "text": TEXTS[name], "audio": clip} for name, clip in zip(TEXTS, clips, strict=True)]
    return write_jsonl(folder / "m.jsonl", rows)


def told(*measures: str, audio: Any = "all", **measuring: Any) -> ResultSettings:
    settings = replace(settings_of(audio=audio), measuring=MeasuringSettings(measures, **measuring))
    return replace(settings, scoring=replace(settings.scoring, unfinished_last=False))


def made(
    manifest: Path, model: Path, output: Path, settings: ResultSettings, rows: int = 9
) -> list[dict[str, Any]]:
    """The rows that a run stores, and in `engine` what its facts are."""
    checkpoint = describe_checkpoint(str(model))
    run = decided(Run((str(manifest),), str(output), str(model), settings), checkpoint)
    opened, index = scan(open_manifest(run.manifest, AUDIO_PAYLOAD))
    folder = OutputFolder(str(output))
    chain = Chain(stages_of(run), Work(run, opened, checkpoint, folder, settings.sampling.seed))
    plan = make_plan(index, select_rows(index, NO_IDS).todo, rows)
    reports = [chain(plan.slices_of(number)).to_pylist()[0] for number in range(plan.num_blocks)]
    publish(Files(folder), [report["part"] for report in reports])
    tables = [folder.read_table("data", name) for name in folder.parquet_files("data")]
    found = pa.concat_tables(tables).sort_by("id").to_pylist() if tables else []
    return [{**row, "engine": json.loads(reports[0]["engine"])} for row in found]


@pytest.fixture(scope="module")
def rows(manifest: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every candidate as sound, measured."""
    return made(manifest, model, tmp_path_factory.mktemp("out"), told(LOUDNESS, OWN + "Deaf"))


def sounds(row: dict[str, Any]) -> list[dict[str, Any]]:
    """By rank, with the candidate's number."""
    best = {"candidate": row["candidates"][0]["candidate"], "audio": row["audio"], **row["audio_measures"]}
    return [best, *row["more_audio"]]


def test_every_candidate_with_sound_is_measured(rows: list[dict[str, Any]]) -> None:
    clips_s = {"a": 0.7, "b": 1.7, "c": 1.0}
    for row in rows:
        assert [m["rank"] for m in row["measures"]] == [1, 2, 3, 4]
        assert [m["candidate"] for m in row["measures"]] == [c["candidate"] for c in row["candidates"]]
        assert len({m["loud"] for m in row["measures"]}) == 4
        for measured, sound in zip(row["measures"], sounds(row), strict=True):
            waveform = samples(sound["audio"])
            assert measured["samples"] == len(waveform)
            assert measured["loud"] == pytest.approx(abs(waveform).mean(), rel=1e-4)
            assert measured["said"] == TEXTS[row["id"]]
            assert measured["clips_s"] == pytest.approx(clips_s[row["id"]], abs=1e-3)
            assert measured["odd"] is None, "a number that is none is stored as null"
            assert measured["mean_log_probability"] < 0
        assert row["engine"]["measures"] == {LOUDNESS: {"version": 1}, OWN + "Deaf": {}}


def test_measures_do_not_depend_on_the_block(
    rows: list[dict[str, Any]], manifest: Path, model: Path, tmp_path: Path
) -> None:
    again = made(manifest, model, tmp_path, told(OWN + "Deaf", LOUDNESS), rows=1)
    assert again == rows, "nor do they depend on the order of the measures"


def test_measures_alone_change_nothing_else(
    rows: list[dict[str, Any]], manifest: Path, model: Path, tmp_path: Path
) -> None:
    plain = made(manifest, model, tmp_path, told())
    for there, here in zip(plain, rows, strict=True):
        assert {k: v for k, v in here.items() if k not in ("measures", "engine")} == {
            k: v for k, v in there.items() if k != "engine"
        }


def test_a_formula_decides_the_order(
    rows: list[dict[str, Any]], manifest: Path, model: Path, tmp_path: Path
) -> None:
    """Of candidates, sound and measures alike, and of nothing else."""
    settings = told(LOUDNESS, OWN + "Deaf", rank_by="-loud")
    for before, after in zip(rows, made(manifest, model, tmp_path, settings), strict=True):
        louds = [m["loud"] for m in after["measures"]]
        assert louds == sorted(m["loud"] for m in before["measures"])
        for name in ("candidates", "measures"):
            assert [item["rank"] for item in after[name]] == [1, 2, 3, 4]
            by_number = {i["candidate"]: {**i, "rank": 0} for i in before[name]}
            assert {i["candidate"]: {**i, "rank": 0} for i in after[name]} == by_number
        order = [m["candidate"] for m in after["measures"]]
        assert [c["candidate"] for c in after["candidates"]] == order
        assert [s["candidate"] for s in sounds(after)] == order
        assert [s["rank"] for s in after["more_audio"]] == [2, 3, 4]
        files = {s["candidate"]: s["audio"] for s in sounds(before)}
        assert [s["audio"] for s in sounds(after)] == [files[number] for number in order]


def test_candidates_without_sound_stay_behind(manifest: Path, model: Path, tmp_path: Path) -> None:
    few = told(LOUDNESS, audio=2, rank_by="0 - score")
    for row in made(manifest, model, tmp_path, few):
        scores = [c["score"] for c in row["candidates"]]
        assert [sorted(scores).index(score) for score in scores] == [2, 3, 1, 0]
        assert len(row["measures"]) == 2
        assert len(row["more_audio"]) == 1


def test_without_sound_a_formula_sees_what_tokens_have(manifest: Path, model: Path, tmp_path: Path) -> None:
    """And candidates that were cut come last, unless told otherwise."""
    settings = told(audio="none", rank_by="longest_run - 100 * repeated_ngrams")
    settings = replace(settings, scoring=replace(settings.scoring, unfinished_last=True))
    for row in made(manifest, model, tmp_path, settings):
        values = [(c["finished"], c["longest_run"] - 100 * c["repeated_ngrams"]) for c in row["candidates"]]
        assert values == sorted(values, reverse=True)
        assert "audio" not in row


def test_rows_without_a_good_candidate_fail_and_others_have_one_first(
    rows: list[dict[str, Any]], manifest: Path, model: Path, tmp_path: Path
) -> None:
    """The condition is met by a candidate of two rows, which is not their best, and by none of the third."""
    good = {(rows[0]["id"], rows[0]["measures"][2]["loud"]), (rows[1]["id"], rows[1]["measures"][3]["loud"])}
    condition = " or ".join(
        f"(said = '{TEXTS[row_id]}' and loud = {loud!r})" for row_id, loud in sorted(good)
    )
    stored = made(manifest, model, tmp_path, told(LOUDNESS, OWN + "Deaf", keep_if=condition))
    assert [row["id"] for row in stored] == ["a", "b"]
    assert errors_of(tmp_path) == [("c", "choose", "NotKept")]
    for row, before in zip(stored, rows, strict=False):
        assert (row["id"], row["measures"][0]["loud"]) in good
        order = [m["candidate"] for m in before["measures"]]
        order.insert(0, order.pop(2 if row["id"] == "a" else 3))
        assert [m["candidate"] for m in row["measures"]] == order, "the others stay, in their order"


def test_what_a_measure_raises_is_the_row_s_error(manifest: Path, model: Path, tmp_path: Path) -> None:
    for name, kind in (("Failing", "RuntimeError"), ("Forgetful", "MissingMeasure")):
        assert made(manifest, model, tmp_path / name, told(OWN + name, audio="best")) == []
        assert errors_of(tmp_path / name) == [(row_id, OWN + name, kind) for row_id in TEXTS]


def test_other_facts_than_the_output_s_are_refused() -> None:
    with pytest.raises(
        RunError, match=r"Loudness.version: 2 there, 1 here\): use the same files and versions"
    ):
        Measurer([LOUDNESS], Loudness(), lambda clip: clip, {"version": 2})


def test_columns_and_their_types() -> None:
    fields = measured_field([LOUDNESS, OWN + "Deaf"]).type.value_type
    assert [(f.name, str(f.type)) for f in fields][2:] == [
        ("mean_log_probability", "double"),
        ("loud", "double"),
        ("samples", "int64"),
        ("said", "string"),
        ("clips_s", "double"),
        ("odd", "double"),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (told("hearsay"), "there is no measure 'hearsay'"),
        (told("no_such_module:X"), "measure no_such_module:X: No module named"),
        (told(LOUDNESS, OWN + "Twice"), "its column 'Loud' exists already"),
        (told("transcribe"), "holds no encoder_model"),
        (
            told(LOUDNESS, rank_by="score - 5*wer"),
            'column "wer" not found.* Columns are rank, candidate, score',
        ),
        (told(LOUDNESS, rank_by="score -"), "'score -': Parser Error: syntax error"),
        (told(LOUDNESS, rank_by="score, loud"), "single expression"),
        (told(LOUDNESS, rank_by="said"), "'said' is string, not double"),
        (told(LOUDNESS, rank_by="max(score)"), "'max.score.' gives 1 values for two candidates"),
        (told(LOUDNESS, rank_by="(select content from read_text('/etc/passwd'))"), "operations are disabled"),
        (told(LOUDNESS, keep_if="loud"), "'loud' is double, not bool"),
        (told(keep_if="loud < 1", audio="none"), 'column "loud" not found'),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_run(
    settings: ResultSettings, message: str, tmp_path: Path
) -> None:
    run = Run((), "out", "model", settings, ExecutionSettings(recognizer=str(tmp_path)))

    def check() -> None:
        check_measures(run)
        check_formulas(run)

    with pytest.raises(RunError, match=message):
        check()


def test_measures_need_sound(checkpoint: Path, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"measure=.* needs sound"):
        told(LOUDNESS, audio="none")
    with pytest.raises(ValueError, match="rank_by='loud' chooses among candidates with sound"):
        told(LOUDNESS, audio="best", rank_by="loud")
    run = Run((str(manifest),), str(tmp_path), str(checkpoint), told(LOUDNESS, audio="auto"))
    with pytest.raises(RunError, match="has no files for sound"):
        decided(run, describe_checkpoint(str(checkpoint)))


@pytest.mark.parametrize(("rank_by", "audio"), [(None, "best"), ("loud", "all")])
def test_where_a_formula_chooses_all_become_sound(model: Path, rank_by: str | None, audio: str) -> None:
    run = Run((), "out", str(model), told(LOUDNESS, audio="auto", rank_by=rank_by))
    assert decided(run, describe_checkpoint(str(model))).results.audio == AudioSettings(audio=audio)  # type: ignore[union-attr]


def test_measures_are_tasks_together_unless_one_wants_a_gpu() -> None:
    stages = stages_of(Run((), "out", "model", told(LOUDNESS, OWN + "Deaf", audio=2, rank_by="score")))
    assert [name for name, _ in grouped(stages)][-3:] == ["waveform", "measure", "write"]
    alone = stages_of(Run((), "out", "model", told(OWN + "OnGpu", rank_by="score")))
    assert [name for name, _ in grouped(alone)][-4:] == ["waveform", OWN + "OnGpu", "measure", "write"]
    assert gpu_shares(alone)[OWN + "OnGpu"] == pytest.approx(0.2 / 1.7, abs=1e-4)


def test_formulas() -> None:
    columns = pa.schema([("wer", pa.float64()), ("finished", pa.bool_()), ("heard", pa.string())])
    rows = [{"wer": 0.1, "finished": True}, {"wer": None, "finished": False}, {"wer": 0.3}]
    table = pa.Table.from_pylist(rows, columns)
    assert Formula("1.5 - 5 * wer", columns, pa.float64())(table) == pytest.approx([1.0, None, 0.0])
    assert Formula("wer <= 0.1", columns, pa.bool_())(table) == [True, None, False]
    assert Formula("1", columns, pa.float64())(table) == [1.0] * 3
    centred = Formula("wer - avg(wer) over ()", columns, pa.float64())(table)
    assert centred == pytest.approx([-0.1, None, 0.1])
    assert Formula("coalesce(heard, '') = '' and finished", columns, pa.bool_())(table) == [True, False, None]


def test_reference_clips_travel_only_where_they_are_heard() -> None:
    later = {
        name: {s.name: s.later for s in stages_of(Run((), "out", "model", told(name)))}["waveform"]
        for name in (LOUDNESS, OWN + "Deaf")
    }
    assert "audio" in later[LOUDNESS]
    assert "audio" not in later[OWN + "Deaf"]
