"""What a node remembers between runs: digests of large files, and how its processor computes."""

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from clvp.sampling import SamplingParams, invariance
from pipeline import checkpoint as checkpoints
from pipeline.cache import remembered
from pipeline.checkpoint import describe_checkpoint
from pipeline.settings import ModelSettings, ResultSettings
from pipeline.stages.sample import Sampler


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLVP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Asked:
    """Counts how often an answer is looked for."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, int]:
        self.times += 1
        return {"number": self.times}


def test_a_question_is_answered_once(own_cache: Path) -> None:
    find = Asked()

    def ask(question: str) -> int:
        return remembered(("a", question), find, dict[str, int])["number"]

    assert [ask("x"), ask("x"), ask("y"), ask("x")] == [1, 1, 2, 1]
    for number, content in enumerate(("{half", "[]", '{"number": "no"}'), 3):  # by a full disk, say
        for kept in (own_cache / "answers").iterdir():
            kept.write_text(content)
        assert [ask("x"), ask("x")] == [number] * 2
    shutil.rmtree(own_cache)
    assert ask("x") == 6


def test_nothing_is_kept_where_nothing_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLVP_CACHE", "/dev/null/none")
    find = Asked()
    assert [remembered("a", find, dict[str, int])["number"] for _ in range(2)] == [1, 2]


def test_a_large_file_is_read_again_when_it_has_changed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in place, to the same size, with its time of change set back."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    weights = folder / "model.safetensors"
    monkeypatch.setattr(checkpoints, "LARGE_BYTES", 1)
    monkeypatch.setattr(checkpoints, "SAMPLE_BYTES", 1)
    monkeypatch.setattr(checkpoints, "SETTLED_SECONDS", -1e9)
    read: list[str] = []
    digest = checkpoints.hashlib.file_digest
    monkeypatch.setattr(checkpoints.hashlib, "file_digest", lambda f, n: read.append(f.name) or digest(f, n))
    first = describe_checkpoint(str(folder))
    assert str(weights) in read
    read.clear()
    assert describe_checkpoint(str(folder)) == first
    assert read == []
    times = weights.stat()
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    time.sleep(0.02)  # a tick of the clock that files are dated by
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = describe_checkpoint(str(folder)).files["model.safetensors"]
    assert changed != first.files["model.safetensors"]
    assert read == [str(weights)]
    # A file system that tells the same state of all files: other weights are others everywhere.
    monkeypatch.setattr(checkpoints.os, "fstat", lambda _: times)
    states = []
    for byte in (b"!", b"?"):
        with weights.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(byte)
        states.append(describe_checkpoint(str(folder)).files["model.safetensors"])
    assert states[0] != states[1] == changed


def test_what_was_just_written_is_not_remembered(
    checkpoint: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could change once more in the same tick."""
    monkeypatch.setattr(checkpoints, "LARGE_BYTES", 1)
    shutil.copytree(checkpoint, tmp_path / "model")
    describe_checkpoint(str(tmp_path / "model"))
    assert not (own_cache / "answers").exists()


def test_a_processor_is_tried_out_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the processes of a node together, as long as nothing changes that may decide how it computes."""
    tried: list[str] = []

    class Probe(invariance._Probe):
        def digest(self, threads: Iterable[int]) -> str | None:
            tried.append(str(self.products))
            return super().digest(threads)

    monkeypatch.setattr(invariance, "_Probe", Probe)
    settings = ResultSettings(sampling=SamplingParams(max_new_tokens=24))

    def facts(dtype: str = "float32") -> str:
        invariance._find.cache_clear()  # as in another process
        tried.clear()
        chosen = replace(settings, model=ModelSettings(dtype=dtype))
        return Sampler(str(checkpoint), chosen, torch_threads=1).facts

    first = facts()
    assert tried
    assert facts() == first
    assert tried == []
    facts("bfloat16")
    assert tried, "another question"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    facts()
    assert tried, "another setting of a library"
