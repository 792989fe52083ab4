"""The demo: its inputs are what they claim to be, and its tables show what the run wrote."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from jobs import demo

ROWS = [json.loads(line) for line in demo.MANIFEST.read_text().splitlines()]
AUDIO_DIR = demo.MANIFEST.parent / "audio"
MOST_WRONG = 0.9  # of the words; noise and other sentences have more


def clips_of(row: dict) -> list[str]:
    return [row["audio"]] if isinstance(row["audio"], str) else row["audio"]


def test_the_manifest_has_good_rows_of_many_voices_and_two_bad_ones() -> None:
    bad = [row for row in ROWS if row["id"].startswith("bad-")]
    good = [row for row in ROWS if row not in bad]
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert len(good) >= 12
    assert len(bad) == 2
    assert {len(clips_of(row)) for row in good} == {1, 2}
    assert all((demo.MANIFEST.parent / clip).is_file() for row in good for clip in clips_of(row))
    assert len({row["speaker"] for row in good}) >= 4


def test_the_clips_differ_in_container_encoding_rate_and_channels() -> None:
    info = {path.name: soundfile.info(path) for path in AUDIO_DIR.iterdir()}
    facts = {(i.format, i.subtype, i.samplerate, i.channels) for i in info.values()}
    assert len(facts) == len(info)
    assert {
        ("WAV", "PCM_16", 16_000, 1),
        ("FLAC", "PCM_16", 44_100, 2),
        ("WAV", "PCM_24", 48_000, 1),
        ("OGG", "VORBIS", 24_000, 1),
        ("MP3", "MPEG_LAYER_III", 24_000, 1),
    } <= facts
    assert all(i.duration > 1.5 for i in info.values())
    assert sum(path.stat().st_size for path in AUDIO_DIR.iterdir()) < 1_500_000


def test_every_clip_carries_speech() -> None:
    for path in AUDIO_DIR.iterdir():
        samples, _ = soundfile.read(path, always_2d=True)
        assert 0.01 < (samples**2).mean() ** 0.5 < 0.5, path.name
        assert abs(samples).max() <= 1, path.name


def test_a_table_aligns_numbers_right_and_text_left(capsys: pytest.CaptureFixture[str]) -> None:
    demo.print_table(("id", "score"), [("a", "7"), ("[b]longer :x:" * 20, "12")])
    demo.print_table(("id",), [])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [["id", "score"], ["a", "7"]]
    assert lines[2] == "[b]longer :x:" * 20 + "     12"
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[3:] == ["id"]


@pytest.mark.parametrize("heard", [False, True])
def test_the_tables_show_the_best_candidates_and_the_failed_rows(
    heard: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidates = [
        {
            "rank": rank,
            "candidate": 10 - rank,
            "score": 1.5 / rank,
            "speech_ids": [rank, 80],
            "num_tokens": 2,
            "finished": rank != 2,
            "duration_s": 0.093,
        }
        for rank in range(1, 6)
    ]
    row = {"id": "u1", "text": "Hello.", "speaker": "Ada", "seed": 0, "candidates": candidates}
    if heard:
        row["measures"] = [{"rank": 1, "candidate": 9, "heard": "hollow"}]
    error = {
        "id": "u2",
        "source": "m, row 2",
        "stage": "audio",
        "type": "AudioNotFound",
        "message": "no such file",
    }
    for folder, record in (("data", row), ("errors", error)):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.Table.from_pylist([record]), tmp_path / folder / "0.parquet")

    demo.print_results(tmp_path, "some/model")

    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines() if line.startswith("u")]
    assert lines == [
        ["u1", "Ada", "1.500", "0.09", "Hello.", *(["hollow"] if heard else [])],
        ["u2", "audio", "AudioNotFound", "no", "such", "file"],
    ]
    assert "some/model" in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("ray")
def test_the_demo_speaks_every_good_row_and_reports_the_bad_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "NUM_CANDIDATES", 4)
    assert demo.main([]) == 0
    printed, progress = capfd.readouterr()
    assert all(re.match(r"\[\d+:\d\d\] ", line) for line in progress.splitlines()), progress
    assert "susnato/clvp_dev" in printed
    data = pq.read_table(tmp_path / demo.OUTPUT / "data").to_pylist()
    assert {row["id"] for row in data} == {row["id"] for row in ROWS if not row["id"].startswith("bad-")}
    assert {len(row["candidates"]) for row in data} == {demo.NUM_CANDIDATES}
    errors = pq.read_table(tmp_path / demo.OUTPUT / "errors").to_pylist()
    assert {row["id"]: row["type"] for row in errors} == {
        "bad-no-clip": "AudioNotFound",
        "bad-no-text": "EmptyText",
    }
    assert all(f"\n{row['id']} " in printed for row in ROWS)
    card = (tmp_path / demo.OUTPUT / "README.md").read_text()
    assert f"| the best of each row | {len(data)} | " in card
    files = {path.name: path.read_bytes() for path in (tmp_path / demo.OUTPUT / "audio").iterdir()}
    assert files == {row["audio"]["path"]: row["audio"]["bytes"] for row in data}
    assert f"{len(data)} files of 24 kHz" in printed
    page = (tmp_path / demo.OUTPUT / "report.html").read_text()
    assert page.count("<audio ") == len(data)
    assert str(tmp_path / demo.OUTPUT / "report.html") in printed
    words = sum(row["measures"][0]["words"] for row in data)
    wrong = sum(row["measures"][0]["words"] * row["measures"][0]["wer"] for row in data)
    assert wrong / words < MOST_WRONG, [row["measures"][0]["heard"] for row in data]
