"""The measures of sound on real speech, and what they say where something is missing."""

from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch

from clvp import quality
from clvp.quality import NAMED, find_measure, packaged
from clvp.quality.moonshine import FOLDER, recognizer_files

LJ = Path(__file__).parents[1] / "data" / "lj"
DEMO = Path(__file__).parents[2] / "examples" / "demo" / "audio"
SAID = {
    "LJ001-0027": "especially as regards the lower-case letters; and type very similar was used during the "
    "next fifteen or twenty years not only by Schoeffer,",
    "LJ028-0149": "using throughout for their cement hot bitumen, and interposing a layer of wattled reeds "
    "at every thirtieth course of the bricks.",
}
NOTHING = np.zeros(0, np.float32)

needs_recognizer = pytest.mark.skipif(not FOLDER.is_dir(), reason="no recognizer: `make measures`, with npm")
needs_voices = pytest.mark.skipif(find_spec("resemblyzer") is None, reason="no Resemblyzer: `make measures`")
needs_opinions = pytest.mark.skipif(find_spec("distillmos") is None, reason="no DistillMOS: `make measures`")


def clip(path: Path) -> np.ndarray:
    """float32 [N] of 24 kHz, as in an output."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, 24_000)


@pytest.fixture(scope="module")
def spoken() -> dict[str, np.ndarray]:
    return {name: clip(LJ / f"{name}.ogg") for name in SAID}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Dr. Brown bought 3 tickets.", "doctor brown bought three tickets"),
        ("lower-case LETTERS; and – type", "lower case letters and type"),
        ("It\u2019s nine o'clock, 'tis said.", "it's nine o'clock tis said"),
        ("At 7:30 p.m. in the U.S.A., 1984", "at seven thirty pm in the usa nineteen eighty four"),
        ("$2.50 & 50% off", "two dollars fifty cents and fifty percent off"),
        ("naïve café", "naive cafe"),
        ("?!… \u4e00", "yi"),
        ("", ""),
    ],
)
def test_words_are_compared_in_one_form(text: str, words: str) -> None:
    transcribe = pytest.importorskip("clvp.quality.transcribe")
    assert " ".join(transcribe.words_of(text)) == words


def test_error_rates() -> None:
    transcribe = pytest.importorskip("clvp.quality.transcribe")
    assert transcribe.error_rates("One two, three four.", "1 2 3 4") == {"words": 4, "wer": 0.0, "cer": 0.0}
    # One substituted, one missing, two added.
    found = transcribe.error_rates("one two three four", "one too three or five six")
    assert found["wer"] == pytest.approx(4 / 4)
    assert transcribe.error_rates("abcd", "abcx")["cer"] == pytest.approx(1 / 4)
    assert transcribe.error_rates("!", "one") == {"words": 0, "wer": None, "cer": None}
    assert transcribe.error_rates("one", "")["wer"] == 1


@needs_recognizer
def test_the_recognizer_hears_the_words(spoken: dict[str, np.ndarray]) -> None:
    """Two errors of 45 words when this was written; noise, or a wrong rate, loses nearly all."""
    transcribe = find_measure("transcribe")()
    found = {name: transcribe(spoken[name], 24_000, text, NOTHING) for name, text in SAID.items()}
    errors = sum(item["wer"] * item["words"] for item in found.values())
    assert errors <= 5, found
    assert all(item["cer"] < 0.1 for item in found.values())
    name, text = next(iter(SAID.items()))
    assert transcribe(spoken[name], 36_000, text, NOTHING)["wer"] > 0.15, "played too fast"
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    assert transcribe(noise, 24_000, text, NOTHING)["wer"] > 0.9


@needs_voices
def test_a_voice_is_more_like_itself_than_like_others(spoken: dict[str, np.ndarray]) -> None:
    similarity = find_measure("similarity")()
    voices = {
        "linda": list(spoken.values()),
        "dan": [clip(DEMO / "dan_24khz_1.ogg"), clip(DEMO / "dan_24khz_2.mp3")],
    }
    same = [similarity(a, 24_000, "", b)["similarity"] for a, b in voices.values()]
    others = [similarity(a, 24_000, "", b)["similarity"] for a, b in product(*voices.values())]
    assert min(same) > 0.8 > 0.7 > max(others)
    assert similarity(*[voices["dan"][0], 24_000, "", voices["dan"][0]]) == {"similarity": 1.0}


@needs_voices
def test_the_speaker_encoder_gives_what_resemblyzer_gives() -> None:
    """Recorded from Resemblyzer 0.1.4 with librosa 0.11: the first values for a sweep of 3 s, not trimmed."""
    expected = [0.0, 0.009355, 0.0, 0.0, 0.058509, 0.021832, 0.010994, 0.009595, 0.060004, 0.04561, 0.038135]
    expected += [0.097535, 0.041918, 0.101997, 0.075938, 0.0, 0.165224, 0.056424, 0.21159, 0.0, 0.192894]
    similarity = find_measure("similarity")()
    time = np.arange(48_000) / 16_000
    sweep = (0.1 * np.sin(2 * np.pi * (200 + 300 * time) * time)).astype(np.float32)
    assert similarity.embed(sweep)[: len(expected)].numpy() == pytest.approx(expected, abs=1e-5)


@needs_opinions
def test_speech_sounds_more_natural_than_speech_in_noise(spoken: dict[str, np.ndarray]) -> None:
    naturalness = find_measure("naturalness")()
    speech = spoken["LJ028-0149"][: 5 * 24_000]
    noise = np.random.default_rng(0).normal(0, 0.05, len(speech)).astype(np.float32)
    clean, noisy = (naturalness(x, 24_000)["naturalness"] for x in (speech, speech + noise))
    assert 5 >= clean > 3.8 > 3 > noisy >= 1


@needs_recognizer
@needs_voices
@needs_opinions
@pytest.mark.parametrize("name", NAMED)
def test_the_same_sound_gives_the_same_numbers(name: str, spoken: dict[str, np.ndarray]) -> None:
    """Alone and after others, with one thread and two, and in an instance of its own."""
    kind = find_measure(name)
    first, second = (sound[: 3 * 24_000] for sound in spoken.values())
    measure = kind()
    alone = measure(first, 24_000, "a text", second)
    assert set(alone) == set(kind.columns)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if before == 1 else 1)
        measure(second, 24_000, "another", first)
        assert measure(first, 24_000, "a text", second) == alone
        assert kind()(first, 24_000, "a text", second) == alone
    finally:
        torch.set_num_threads(before)


@needs_recognizer
@needs_voices
@needs_opinions
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("samples", [0, 1, 300, 24_000])
def test_silence_however_short_is_measured(name: str, samples: int) -> None:
    silence = np.zeros(samples, np.float32)
    found = find_measure(name)()(silence, 24_000, "a text", silence)
    assert all(value is None or value == value for value in found.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "transcript",
            "there is no measure 'transcript': it is one of transcribe, similarity, naturalness or ",
        ),
        (
            "no_such_module:Class",
            "measure no_such_module:Class: No module named 'no_such_module'; is its folder",
        ),
        ("clvp.quality:Nothing", "has no attribute 'Nothing'"),
        ("tests.pipeline.fake_measures:Wrong", "`columns` must map names to float, int or str"),
        ("pathlib:Path", "`columns` must map names"),
    ],
)
def test_names_that_stand_for_nothing(name: str, message: str) -> None:
    with pytest.raises((ImportError, ValueError), match=message.replace("(", r"\(")):
        find_measure(name)


def test_what_is_missing_is_said_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"the package nothing with its x.pt is not .*pip install"):
        packaged("nothing", "x.pt")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} holds no encoder_model .*--recognizer"):
        recognizer_files(str(tmp_path))

    def gone(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(quality, "import_module", gone)
    with pytest.raises(ImportError, match=r"measure naturalness: .*; make measures, or pip install jiwer"):
        find_measure("naturalness")


def test_files_of_a_recognizer(tmp_path: Path) -> None:
    """Either format of onnxruntime, and a vocabulary of its own."""
    names = ["encoder_model.ort", "decoder_model_merged.onnx", "tokenizer.bin"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in recognizer_files(str(tmp_path))] == names
