import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from clvp.audio.mel import log_mel
from clvp.sampling import Engine, EngineConfig, SamplingParams
from pipeline.settings import ResultSettings
from pipeline.stages.sample import Sampler
from pipeline.stages.tokens import TextToTokens, load_tokenizer
from pipeline.stages.voices import AudioToMels
from tests.pipeline.clips import read_rows, write_clip, write_jsonl

SETTINGS = ResultSettings(num_candidates=5, sampling=SamplingParams(max_new_tokens=24, seed=7))


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> pa.Table:
    """Seven rows over three voices; row r4 has failed before."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "a.wav", 0.5)
    write_clip(folder / "b.flac", 1.0, 44_100, 2)
    audio = ["a.wav", "b.flac", ["a.wav", "b.flac"], "a.wav", "missing.wav", "b.flac", "a.wav"]
    rows = [
        {"id": f"r{i}", "text": f"Text number {i}, " + "and more " * i, "audio": value, "speaker": i}
        for i, value in enumerate(audio)
    ]
    table = read_rows(write_jsonl(folder / "m.jsonl", rows), rows_per_block=100)
    table = TextToTokens(load_tokenizer(str(checkpoint), "tortoise"), 401)(table)
    return AudioToMels(log_mel, 6.0)(table)


@pytest.fixture(scope="module")
def sampler(checkpoint: Path) -> Sampler:
    return Sampler(str(checkpoint), SETTINGS, torch_threads=1)


def tokens(table: pa.Table) -> dict[str, object]:
    return dict(zip(table["id"].to_pylist(), table["speech_ids"].to_pylist(), strict=True))


def test_columns_and_candidates(sampler: Sampler, block: pa.Table) -> None:
    out = sampler(block)
    assert set(out.schema.names) == {*block.schema.names, "speech_ids", "engine"}, (
        "what it does not know travels on"
    )
    rows = out["speech_ids"].to_pylist()
    assert rows[4] is None
    assert out["error"][4].as_py()["type"] == "AudioNotFound"
    for row in rows[:4] + rows[5:]:
        assert [c["candidate"] for c in row] == [0, 1, 2, 3, 4]
        assert all(len(c["speech_ids"]) <= 24 and max(c["speech_ids"], default=0) < 8192 for c in row)
        assert all(c["finished"] or len(c["speech_ids"]) == 24 for c in row)
    assert len({tuple(c["speech_ids"]) for row in rows if row for c in row}) > 20, "candidates differ"
    assert {c["finished"] for row in rows if row for c in row} == {True, False}


def test_tokens_do_not_depend_on_the_block(checkpoint: Path, sampler: Sampler, block: pa.Table) -> None:
    together = tokens(sampler(block))
    one_by_one: dict[str, object] = {}
    for i in reversed(range(len(block))):
        one_by_one |= tokens(sampler(block.slice(i, 1)))
    assert one_by_one == together
    fresh = Sampler(str(checkpoint), SETTINGS, EngineConfig(lanes=3), voices_cached=1, torch_threads=1)
    assert tokens(fresh(block.take([6, 2, 5, 0]))) == {k: together[k] for k in ("r6", "r2", "r5", "r0")}


def test_blocks_that_are_there_at_once_keep_their_rows(sampler: Sampler, block: pa.Table) -> None:
    blocks = [block.take(rows) for rows in ([0, 4, 1], [2], [6, 5], [3, 0])]
    expected = [tokens(sampler(table)) for table in blocks]
    with ThreadPoolExecutor(len(blocks)) as threads:
        together = list(threads.map(sampler, blocks))
    assert [tokens(table) for table in together] == expected
    assert 5 / 64 < sampler.lanes_in_use <= 1, "more than one row's"


def test_tokens_depend_on_seed_and_settings(checkpoint: Path, sampler: Sampler, block: pa.Table) -> None:
    row = block.slice(0, 1)
    other = ResultSettings(num_candidates=5, sampling=SamplingParams(max_new_tokens=24, seed=8))
    assert tokens(Sampler(str(checkpoint), other, torch_threads=1)(row)) != tokens(sampler(row))
    more = ResultSettings(num_candidates=8, sampling=SETTINGS.sampling)
    extended = tokens(Sampler(str(checkpoint), more, torch_threads=1)(row))["r0"]
    assert extended[:5] == tokens(sampler(row))["r0"], "more candidates leave the first ones as they were"  # type: ignore[index]


@pytest.mark.parametrize("products", ["packed", "plain"])
@pytest.mark.parametrize("pickled", [False, True])
def test_a_checkpoint_may_be_overwritten_under_a_sampler(
    checkpoint: Path, tmp_path: Path, block: pa.Table, products: Literal["packed", "plain"], pickled: bool
) -> None:
    """In place, as `cp` does: it reads the mapped file while it is made, and never again."""
    shutil.copytree(checkpoint, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    if pickled:  # with weights that lie as decoding wants them already
        state = {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in load_file(weights).items()}
        weights.unlink()
        weights = weights.with_name("pytorch_model.bin")
        torch.save(state, weights)
    sampler = Sampler(str(tmp_path / "model"), SETTINGS, EngineConfig(products=products), torch_threads=1)
    expected = tokens(sampler(block))
    with weights.open("r+b") as file:
        file.write(b"\xff" * weights.stat().st_size)
    assert tokens(sampler(block)) == expected


def test_a_voice_is_conditioned_once(
    checkpoint: Path, block: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(str(checkpoint), SETTINGS, torch_threads=1)
    calls = []
    average = sampler.encoder.average_clips
    monkeypatch.setattr(
        sampler.encoder, "average_clips", lambda mels: calls.append(len(mels)) or average(mels)
    )
    sampler(block)
    sampler(block)
    assert sorted(calls) == [1, 1, 2]


def fail_at_r2(monkeypatch: pytest.MonkeyPatch, make_error: Callable[[], Exception]) -> None:
    admit = Engine._admit

    def broken(engine: Engine, decoder: Any) -> None:
        if any(row.prompt.row_id == "r2" for row in engine.queue):
            raise make_error()
        admit(engine, decoder)

    monkeypatch.setattr(Engine, "_admit", broken)


@pytest.mark.parametrize(
    "make_error", [lambda: ValueError("odd"), lambda: torch.OutOfMemoryError("CUDA out of memory")]
)
def test_a_row_that_fails_takes_no_other_with_it(
    sampler: Sampler, block: pa.Table, monkeypatch: pytest.MonkeyPatch, make_error: Callable[[], Exception]
) -> None:
    expected = tokens(sampler(block))
    fail_at_r2(monkeypatch, make_error)
    out = sampler(block)
    assert tokens(out) == expected | {"r2": None}
    error = out["error"][2].as_py()
    assert (error["stage"], error["type"]) == ("sample", type(make_error()).__name__)


def test_a_lost_gpu_ends_the_process(
    sampler: Sampler, block: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at_r2(monkeypatch, lambda: RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="CUDA error"):
        sampler(block)


def test_a_block_without_good_rows(sampler: Sampler, block: pa.Table) -> None:
    out = sampler(block.slice(4, 1))
    assert out["speech_ids"].to_pylist() == [None]
    assert len(sampler(block.slice(0, 0))) == 0


def test_latest_used_voices_stay(sampler: Sampler, block: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "latents", {})
    monkeypatch.setattr(sampler, "voices_cached", 2)
    keys = block["voice_key"].to_pylist()
    first, second = 0, next(i for i, key in enumerate(keys) if key not in (None, keys[0]))
    sampler._prompt(block, first)
    sampler._prompt(block, second)
    sampler._prompt(block, first)
    assert list(sampler.latents) == [keys[second], keys[first]]
    monkeypatch.setattr(sampler, "voices_cached", 1)
    sampler._prompt(block, first)
    assert list(sampler.latents) == [keys[first]]
