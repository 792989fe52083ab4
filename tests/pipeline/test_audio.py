from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
import torchaudio

from clvp import ClvpFeatureExtractor
from clvp.audio.mel import TORTOISE_MEL_NORMS, log_mel
from pipeline.rows.columns import INPUT_IDS
from pipeline.settings import ResultSettings, Run
from pipeline.stages import stages_of
from pipeline.stages import voices as audio_stage
from pipeline.stages.voices import AudioToMels, voice_mels
from tests.pipeline.clips import read_rows, write_clip, write_jsonl


def stage_input(path: Path, rows: list[dict[str, object]]) -> pa.Table:
    """Rows as they come from the read and validate stages."""
    table = read_rows(write_jsonl(path / "m.jsonl", rows), rows_per_block=100)
    tokens = pa.array([[1, 2]] * len(table), INPUT_IDS.type)
    return table.append_column(INPUT_IDS, tokens)


def row(number: int, audio: object, **extra: object) -> dict[str, object]:
    return {"id": f"r{number}", "text": "hello", "audio": audio, **extra}


def test_mel_is_that_of_the_feature_extractor(tmp_path: Path) -> None:
    """Against an independent path: decode everything, resample with torchaudio, extract features."""
    write_clip(tmp_path / "a.flac", 1.5, 44_100, 2)
    write_clip(tmp_path / "b.wav", 8.0, 16_000, subtype="PCM_24")
    out = AudioToMels(log_mel, 6.0)(stage_input(tmp_path, [row(0, "a.flac"), row(1, ["b.wav", "a.flac"])]))
    extractor = ClvpFeatureExtractor(mel_norms=TORTOISE_MEL_NORMS)

    def expected(name: str) -> np.ndarray:
        samples, rate = soundfile.read(tmp_path / name, dtype="float32", always_2d=True)
        waveform = torchaudio.functional.resample(torch.from_numpy(samples.mean(axis=1)), rate, 22_050)
        return extractor(waveform.numpy(), sampling_rate=22_050, return_tensors="np")["input_features"][0]

    voices = [voice_mels(value, 6.0) for value in out["voice"].to_pylist()]
    assert [len(voice) for voice in voices] == [1, 2]
    for mel, name in zip(
        [mel for voice in voices for mel in voice], ("a.flac", "b.wav", "a.flac"), strict=True
    ):
        assert mel.shape == (80, 517)
        np.testing.assert_allclose(mel.numpy(), expected(name), atol=1e-4)


def test_folders_and_globs_stand_for_the_clips_in_them(tmp_path: Path) -> None:
    for name in ("ada/2.wav", "ada/1.flac", "ada/deep/3.wav", "bob*.wav", "out/of/1.wav"):
        write_clip(tmp_path / name, 0.3 + 0.1 * len(name))
    (tmp_path / "ada/notes.txt").write_text("no clip")
    (tmp_path / "none").mkdir()
    audio = [
        *("ada/", "ada/*.wav", ["ada/*", "bob*.wav"], "ada/1.flac", "none/", "gone/*", "ada", "*/1.flac"),
    ]
    rows = stage_input(tmp_path, [row(i, value) for i, value in enumerate(audio)])
    out = AudioToMels(log_mel, 6.0)(rows)
    names = [
        value and [clip["path"].removeprefix(f"{tmp_path}/") for clip in value]
        for value in out["audio"].to_pylist()
    ]
    both = ["ada/1.flac", "ada/2.wav"]
    assert names[:4] == [both, ["ada/2.wav"], [*both, "bob*.wav"], ["ada/1.flac"]]
    assert [len(voice_mels(value, 6.0)) for value in out["voice"].to_pylist()[:4]] == [2, 1, 3, 1]
    kinds = [error and error["type"] for error in out["error"].to_pylist()]
    assert kinds == [None] * 4 + ["AudioNotFound"] * 2 + ["UnreadableAudio", "AudioNotFound"]
    for root, good in (("ada", [0, 1, 3]), ("out", [])):
        inside = AudioToMels(log_mel, 6.0, audio_root=str(tmp_path / root))(rows)["error"].to_pylist()
        assert [i for i, error in enumerate(inside) if error is None] == good
        assert inside[2]["type"] == "AudioOutsideRoot"


def test_shared_voices_travel_and_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.wav", "b.wav"):
        write_clip(tmp_path / name, 0.3 if name == "a.wav" else 0.4)
    decoded = []
    decode = audio_stage.decode_clip
    monkeypatch.setattr(audio_stage, "decode_clip", lambda *args: decoded.append(args[1]) or decode(*args))
    names = ["a.wav", "b.wav", ["a.wav"], ["a.wav", "b.wav"], "b.wav", ["a.wav", "b.wav"]]
    out = AudioToMels(log_mel, 6.0)(stage_input(tmp_path, [row(i, name) for i, name in enumerate(names)]))
    assert sorted(decoded) == [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
    column = out["voice"].combine_chunks()
    assert len(column.dictionary) == 3
    assert out.nbytes < 3.1 * 2 * 80 * 517 * 4
    keys = out["voice_key"].to_pylist()
    assert keys[0] == keys[2]
    assert keys[1] == keys[4]
    assert keys[3] == keys[5]
    assert len(set(keys)) == 3


def test_voice_key_is_of_the_content(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.wav", 0.3)
    (tmp_path / "copy.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    out = AudioToMels(log_mel, 6.0)(stage_input(tmp_path, [row(0, "a.wav"), row(1, "copy.wav")]))
    again = AudioToMels(log_mel, 6.0)(stage_input(tmp_path, [row(9, "copy.wav")]))
    assert len({*out["voice_key"].to_pylist(), *again["voice_key"].to_pylist()}) == 1


def test_a_bad_clip_fails_its_own_rows_alone(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.wav", 0.3)
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    rows = [
        row(0, "a.wav"),
        row(1, "bad.wav"),
        row(2, None),
        row(3, ["a.wav", "bad.wav"]),
        row(4, "a.wav", note="x"),
    ]
    table = stage_input(tmp_path, rows)
    out = AudioToMels(log_mel, 6.0)(table)
    errors = out["error"].to_pylist()
    assert [error and (error["stage"], error["type"]) for error in errors] == [
        None,
        ("audio", "UndecodableAudio"),
        ("read", "MissingAudio"),
        ("audio", "UndecodableAudio"),
        None,
    ]
    assert [value is None for value in out["voice"].to_pylist()] == [False, True, True, True, False]
    assert [value is None for value in out["voice_key"].to_pylist()] == [False, True, True, True, False]
    assert out["extra.note"].to_pylist() == [None, None, None, None, "x"]
    assert set(out.schema.names) == {*table.schema.names, "voice_key", "voice"}, (
        "what it does not know travels on"
    )


def test_a_codec_that_raises_anything_is_a_row_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "a.wav", 0.3)

    def explode(*_: object) -> None:
        raise MemoryError("too much")

    monkeypatch.setattr(audio_stage, "decode_clip", explode)
    out = AudioToMels(log_mel, 6.0)(stage_input(tmp_path, [row(0, "a.wav")]))
    assert out["error"][0].as_py()["type"] == "MemoryError"


def test_other_lengths_and_empty_blocks(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.wav", 3.0)
    table = stage_input(tmp_path, [row(0, "a.wav")])
    out = AudioToMels(log_mel, 2.0)(table)
    assert voice_mels(out["voice"][0].as_py(), 2.0)[0].shape == (80, 173)
    assert len(AudioToMels(log_mel, 2.0)(table.slice(0, 0))) == 0


def test_a_stage_refuses_blocks_of_another_stage(tmp_path: Path) -> None:
    table = stage_input(tmp_path, [row(0, "a.wav")]).drop_columns("audio")
    run = Run((), "out", "model", ResultSettings())
    (stage,) = (stage for stage in stages_of(run) if stage.name == "audio")
    with pytest.raises(TypeError, match="'audio'"):
        stage.apply(AudioToMels(log_mel, 6.0), table)
