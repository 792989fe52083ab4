"""The loop resumes exactly, shares a batch among processes, and each part learns."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clvp.assets import ASSETS
from clvp.codec import SpeechCodec
from clvp.codec.networks import FRAMES_PER_CODE
from clvp.generation import LABEL_IGNORED
from clvp.model import ClvpModelForConditionalGeneration
from clvp.text.tokenizer import ClvpTokenizer
from clvp.training.corpus import Corpus, piece_ends
from clvp.training.decoder import digits_of
from clvp.training.export import export
from clvp.training.loop import LOG_FILE, STATE_FILE, Place, plot, train
from clvp.training.pair import edited, slurred
from clvp.training.parts import make_part
from clvp.training.settings import PARTS, PartName, TrainingSettings
from tests.training.conftest import tiny_sizes

ALONE = Place(0, 1, torch.device("cpu"))
SETTINGS = TrainingSettings(steps=6, batch=8, warmup=2, log_every=1, validate_every=3, checkpoint_s=0)


def run(
    name: PartName, corpus: Corpus, output: Path, settings: TrainingSettings, until: int | None = None
) -> list[dict]:
    train(make_part(name, tiny_sizes(), corpus), output, settings, ALONE, until)
    return read_log(output)


def read_log(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / LOG_FILE).read_text().splitlines()]


def validated(lines: list[dict]) -> list[float]:
    return [line["validation_loss"] for line in lines if "validation_loss" in line]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / STATE_FILE, weights_only=True)["network"]


def test_a_run_begins_with_the_weights_of_another(corpus: Corpus, tmp_path: Path) -> None:
    run("codec", corpus, tmp_path / "first", SETTINGS)
    still = replace(SETTINGS, steps=1, learning_rate=1e-12)
    part = make_part("codec", tiny_sizes(), corpus, seed=1)
    train(part, tmp_path / "second", still, ALONE, start=tmp_path / "first")
    for key, value in weights(tmp_path / "first").items():
        assert torch.allclose(weights(tmp_path / "second")[key], value, atol=1e-9), key
    assert [line["step"] for line in read_log(tmp_path / "second")] == [1, 1]


@pytest.mark.parametrize("name", PARTS)
def test_a_resumed_run_is_the_uninterrupted_one(name: PartName, corpus: Corpus, tmp_path: Path) -> None:
    whole = run(name, corpus, tmp_path / "whole", SETTINGS)
    for until, workers in ((2, 0), (5, 2), (None, 0)):  # each in a part made anew
        parts = run(name, corpus, tmp_path / "parts", replace(SETTINGS, workers=workers), until)
    for key, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "parts")[key], value), key
    without_time = [{k: v for k, v in line.items() if k != "seconds_per_step"} for line in whole]
    assert [{k: v for k, v in line.items() if k != "seconds_per_step"} for line in parts] == without_time


def test_a_run_that_diverges_says_so_and_keeps_its_checkpoint(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("codec", corpus, tmp_path, SETTINGS, until=2)
    part = make_part("codec", tiny_sizes(), corpus)
    batch = part.batch

    def broken(rng: np.random.Generator, size: int, *share: int) -> dict:
        return {k: v * torch.nan if v.is_floating_point() else v for k, v in batch(rng, size, *share).items()}

    monkeypatch.setattr(part, "batch", broken)
    with pytest.raises(ValueError, match=r"diverged before step 3: .* start again"):
        train(part, tmp_path, SETTINGS, ALONE)
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


@pytest.mark.parametrize(
    ("name", "measure", "untrained", "bound"),
    # Nats a code of 18, start and stop among them; contrast among 16 sounds and 32 texts: ln 16 + ln 32.
    [
        ("codec", "envelope", 1.5, 1.35),
        ("sound", "envelope", 0.9, 0.85),
        ("decoder", "nats", 2.5, 1.5),
        ("pair", "contrast", 5.5, 4.9),
    ],
)
def test_each_part_learns(
    name: PartName, measure: str, untrained: float, bound: float, corpus: Corpus, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=120, learning_rate=5e-3, validate_every=120, checkpoint_s=100)
    lines = run(name, corpus, tmp_path, settings)
    assert lines[0][measure] > untrained
    assert lines[-2][measure] < bound
    assert plot(tmp_path).stat().st_size


def test_two_processes_are_one(corpus: Corpus, tmp_path: Path) -> None:
    """The same global batch: what two processes learn of a half each is what one learns of the whole.

    Adam turns rounding into steps where a gradient is next to nothing, so that losses are compared.
    """
    settings = replace(SETTINGS, learning_rate=5e-3, validate_every=1)
    script = tmp_path / "two.py"
    script.write_text(
        f"""
from pathlib import Path
import torch
from clvp.training.corpus import Corpus
from clvp.training.loop import processes, train
from clvp.training.settings import TrainingSettings
from clvp.training.parts import make_part
from tests.training.conftest import tiny_sizes

torch.manual_seed(0)
with processes() as place:
    assert place.world == 2
    part = make_part("codec", tiny_sizes(), Corpus(Path({str(corpus.folder)!r}), validation=4))
    train(part, Path({str(tmp_path / "two")!r}), {settings!r}, place)
"""
    )
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        str(script),
    ]
    subprocess.run(launch, check=True, timeout=200, env={**os.environ, "PYTHONPATH": "."})
    one = validated(run("codec", corpus, tmp_path / "one", settings))
    assert validated(read_log(tmp_path / "two")) == pytest.approx(one, rel=1e-3)
    half = validated(run("codec", corpus, tmp_path / "half", replace(settings, batch=4)))
    assert half != pytest.approx(one, rel=1e-3)


def test_exported_parts_are_one_checkpoint(corpus: Corpus, tmp_path: Path) -> None:
    for name in PARTS:
        run(name, corpus, tmp_path / name, replace(SETTINGS, steps=1))
    folder = export(tmp_path / "model", tiny_sizes(), tmp_path)
    model = ClvpModelForConditionalGeneration.from_pretrained(folder, dtype="float32")
    mel = torch.from_numpy(corpus.mel(0))
    output = model.generate(torch.tensor([[5, 6]]), mel[None], num_return_sequences=2, seed=0)
    assert output.speech_ids.shape == (2, tiny_sizes().family.scoring_length)
    codec = SpeechCodec.from_pretrained(folder)
    waveforms = codec.decode(list(output.speech_ids), codec.voice_of([mel]))
    assert all(waveform.isfinite().all() for waveform in waveforms)


def test_text_tokens_share_the_time_of_their_word() -> None:
    assert piece_ends(["a", "b", "[SPACE]", "c"], [0.3, 0.5]) == pytest.approx([0.1, 0.2, 0.3, 0.5])
    assert piece_ends(["a", "[SPACE]", "c"], [0.3]) == []


def test_wrong_versions_are_wrong() -> None:
    words = ["one", "two", "three"]
    found = {tuple(edited(words, ["four"], np.random.default_rng(seed))) for seed in range(60)}
    assert len(found) > 8
    assert {len(words) for words in found} == {2, 3, 4}


def test_a_slurred_word_is_part_of_each() -> None:
    word, other = np.arange(9), np.arange(20, 40)
    for seed in range(30):
        codes = slurred(word, other, np.random.default_rng(seed))
        assert set(codes) <= {*word, *other}
        assert set(codes) & set(word)
        assert set(codes) & set(other)


def test_every_row_has_speech_that_went_wrong(corpus: Corpus) -> None:
    part = make_part("pair", tiny_sizes(), corpus)
    batch = part.batch(np.random.default_rng(0), 12, 0, 1)
    right, spoiled = batch["speech"].chunk(2)
    assert (right != spoiled).any(dim=1).all()


def test_samples_belong_to_what_was_heard(corpus: Corpus, tmp_path: Path) -> None:
    said, misheard = "one two three", "one two four"
    codes = {0: [1, 2, 3], 1: [4, 5], 2: [6] * 90}  # the last is longer than what is scored
    heard = {0: misheard, 1: said, 2: said}
    row = {
        "text": said,
        "candidates": [{"candidate": k, "speech_ids": ids} for k, ids in codes.items()],
        "measures": [{"candidate": k, "heard": f"{text.capitalize()}"} for k, text in heard.items()],
    }
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "data" / "0.parquet")
    part = make_part("pair", tiny_sizes(), corpus, samples=tmp_path)
    ids = {text: ClvpTokenizer.from_pretrained(ASSETS)(text)["input_ids"] for text in (said, misheard)}
    found = {
        tuple(e.codes): e
        for e in (part._sampled(*part.samples[0], np.random.default_rng(s)) for s in range(9))
    }
    assert set(found) == {(1, 2, 3), (4, 5)}
    for key, other, text in (((1, 2, 3), (4, 5), misheard), ((4, 5), (1, 2, 3), said)):
        example = found[key]
        assert example.text == ids[text]
        assert ids[said if text == misheard else misheard] in example.wrong
        assert ids[text] not in example.wrong
        assert tuple(example.spoiled) == other
    batch = part.batch(np.random.default_rng(0), 8, 0, 1)
    assert len(batch["speech"]) == 16
    assert (batch["says"] == LABEL_IGNORED).all(dim=1).sum() == 4, "half of the rows are samples"


def test_sound_begins_with_a_codec_s_decoder(corpus: Corpus, tmp_path: Path) -> None:
    run("codec", corpus, tmp_path / "codec", replace(SETTINGS, steps=1))
    part = make_part("sound", tiny_sizes(), corpus)
    still = replace(SETTINGS, steps=1, learning_rate=1e-12)
    train(part, tmp_path / "sound", still, ALONE, start=tmp_path / "codec")
    codec = weights(tmp_path / "codec")
    for key, value in part.network.decoder.state_dict().items():
        assert torch.allclose(value, codec[f"decoder.{key}"], atol=1e-9), key


def test_codes_of_a_piece_are_those_of_its_frames(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clvp.training.codec.SPOKEN", 5)
    batch = make_part("sound", tiny_sizes(), corpus).batch(np.random.default_rng(1), 4, 0, 1)
    places = [(row, start) for row, codes in enumerate(corpus.codes) for start in range(len(codes) - 5 + 1)]
    for mel, codes in zip(batch["mel"].numpy(), batch["codes"].numpy(), strict=True):
        # A steady tone has the same frames at several places, not the same codes.
        assert any(
            np.array_equal(corpus.mel(row, FRAMES_PER_CODE * start, FRAMES_PER_CODE * 5), mel)
            and np.array_equal(corpus.codes[row][start : start + 5], codes)
            for row, start in places
        )


def test_what_digits_add_is_merged_into_the_tables(corpus: Corpus) -> None:
    part = make_part("decoder", tiny_sizes(), corpus)
    network = part.network.eval()
    torch.nn.init.normal_(network.digits_in)
    torch.nn.init.normal_(network.digits_out)
    batch = next(part.validation())
    with torch.no_grad():
        before = network(batch)["nats"]
        network.merge()
        assert not network.digits_in.any()
        torch.testing.assert_close(network(batch)["nats"], before)


def test_codes_with_a_digit_in_common_share_its_row() -> None:
    digits = digits_of((4, 3))
    assert digits.shape == (12, 2)
    assert digits.unique(dim=0).shape == (12, 2)
    assert digits[5].tolist() == [1, 4 + 1]
