"""Rows in one engine: whatever is under way, fails or is cancelled, the tokens of all other rows stay."""

import ctypes
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch

from clvp.sampling import CandidateSampler, Engine, EngineConfig, PromptRow, SamplingParams
from clvp.sampling.cpu_decoder import CohortDecoder
from clvp.sampling.decode_weights import DecoderWeights
from clvp.sampling.gpu_decoder import StaticDecoder
from clvp.sampling.invariance import thread_count
from tests.sampling.rehearsal import static_decoder
from tests.sampling.small_models import WIDTH, Tokens, plain, prompt, small_decoder

PARAMS = SamplingParams(max_new_tokens=50, temperature=1.0, top_p=0.95, seed=3)
NUMBERS = range(1, 11)
Decoder = CohortDecoder | StaticDecoder


@pytest.fixture(scope="module")
def alone() -> dict[int, Tokens]:
    sampler = CandidateSampler(small_decoder(), EngineConfig(lanes=24))
    return {number: plain(sampler.sample([prompt(number)], PARAMS)[0]) for number in NUMBERS}


@pytest.fixture(params=["cohorts", "static"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """With the decoder for CPUs, and with that for GPUs without its kernel."""
    if request.param == "static":
        monkeypatch.setattr(CandidateSampler, "new_decoder", static_decoder)
    return CandidateSampler(small_decoder(), EngineConfig(lanes=24, kv_budget_bytes=10**9)).engine(PARAMS)


def test_rows_that_come_while_others_are_decoded(engine: Engine, alone: dict[int, Tokens]) -> None:
    results, most = {}, 0
    for number in NUMBERS:
        results[number] = engine.begin(prompt(number))
        engine.step()
        most = max(most, len(engine.rows))
    while engine.rows:
        engine.step()
    assert most > 2
    assert {number: plain(result.result(0)) for number, result in results.items()} == alone
    assert 0 < engine.stats.live_steps <= 24 * engine.stats.steps
    assert engine.decoder is not None
    assert engine.decoder.live == len(engine.queue) == 0


def test_one_thread_serves_many(engine: Engine, alone: dict[int, Tokens]) -> None:
    engine.start()
    found: dict[int, Tokens] = {}

    def ask(number: int) -> None:
        for n in (number, number + 5):
            found[n] = plain(engine.submit(partial(prompt, n)).result(timeout=200))

    callers = [threading.Thread(target=ask, args=(number,)) for number in NUMBERS[:5]]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == alone


def test_its_thread_computes_with_the_threads_that_were_set(engine: Engine) -> None:
    """Also what comes first, the conditioning of the first row, whose bits may depend on them."""
    threads: list[int] = []

    def make() -> PromptRow:
        loaded = re.findall(r"\S+/libgomp\S+", Path("/proc/self/maps").read_text())
        threads.append(ctypes.CDLL(loaded[0]).omp_get_max_threads())
        return prompt(1)

    with thread_count(3):
        engine.start()
        engine.submit(make).result(timeout=200)
    assert threads == [3]


def test_a_row_that_is_cancelled_or_bad_disturbs_no_other(engine: Engine, alone: dict[int, Tokens]) -> None:
    results = {number: engine.submit(partial(prompt, number)) for number in (1, 2, 3)}
    bad = engine.submit(lambda: PromptRow("bad", torch.zeros(3, WIDTH + 1), [0]))
    gone = engine.submit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    none = engine.submit(lambda: PromptRow("none", torch.zeros(3, WIDTH), []))
    results |= {number: engine.submit(partial(prompt, number)) for number in (4, 5)}
    assert results.pop(2).cancel()
    engine.start()
    found = {number: plain(result.result(timeout=200)) for number, result in results.items()}
    assert found == {number: alone[number] for number in results}
    assert isinstance(gone.exception(timeout=200), ZeroDivisionError)
    assert "row 'bad'" in str(bad.exception(timeout=200))
    assert none.result(timeout=200) == []


def poison() -> PromptRow:
    """A prefix so large that the row's keys overflow, and with them its logits alone."""
    return PromptRow("poison", torch.full((3, WIDTH), 3e38) * torch.tensor([1.0, -1.0]).repeat(32), range(9))


def test_a_row_without_numbers_fails_alone(engine: Engine, alone: dict[int, Tokens]) -> None:
    results = {number: engine.submit(partial(prompt, number)) for number in (1, 2)}
    failed = engine.submit(poison)
    results |= {number: engine.submit(partial(prompt, number)) for number in (3, 4)}
    engine.start()
    assert "logits are NaN or infinite" in str(failed.exception(timeout=200))
    found = {number: plain(result.result(timeout=200)) for number, result in results.items()}
    assert found == {number: alone[number] for number in results}


def test_memory_that_runs_out_is_given_back_before_rows_are_tried_again(
    engine: Engine, alone: dict[int, Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs out whenever row 11 is there: it alone fails, in the middle of others' candidates."""
    decoders: list[ref[Decoder]] = []
    new_decoder = engine.new_decoder

    def watched() -> Decoder:
        assert not any(decoder() for decoder in decoders), "the memory of the last one is taken still"
        decoder = new_decoder()
        decoders.append(ref(decoder))
        return decoder

    def failing(step: Callable[[Any], object], decoder: Any) -> object:
        owners = decoder.table.owners if isinstance(decoder, CohortDecoder) else decoder.owners
        if any(owner and owner.candidate == 40 for owner in owners):
            raise torch.OutOfMemoryError("out of memory")
        return step(decoder)

    for kind in (CohortDecoder, StaticDecoder):
        step = kind.step
        monkeypatch.setattr(kind, "step", lambda decoder, step=step: failing(step, decoder))
    monkeypatch.setattr(engine, "new_decoder", watched)
    results = {number: engine.submit(partial(prompt, number)) for number in NUMBERS[:5]}
    bad = engine.submit(partial(prompt, 11, [39, 40]))
    results |= {number: engine.submit(partial(prompt, number)) for number in NUMBERS[5:]}
    engine.start()
    assert isinstance(bad.exception(timeout=200), torch.OutOfMemoryError)
    assert {number: plain(result.result(timeout=200)) for number, result in results.items()} == alone


def test_a_device_that_is_lost_hangs_nobody(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on everything raises that touches a tensor there."""
    lost = threading.Event()

    def fails(*_: object) -> object:
        lost.set()
        raise RuntimeError("CUDA error: unspecified launch failure")

    def check(row: PromptRow, weights: DecoderWeights) -> None:
        if lost.is_set():
            fails()

    monkeypatch.setattr("clvp.sampling.engine._check_prompt", check)
    for kind in (CohortDecoder, StaticDecoder):
        monkeypatch.setattr(kind, "step", fails)
    results = [engine.submit(partial(prompt, number)) for number in NUMBERS]
    engine.start()
    assert all("CUDA error" in str(result.exception(timeout=60)) for result in results)


def test_a_decoder_that_cannot_be_made_hangs_nobody(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "new_decoder", lambda: 1 / 0)
    engine.start()
    results = [engine.submit(partial(prompt, number)) for number in NUMBERS]
    assert all(isinstance(result.exception(timeout=60), ZeroDivisionError) for result in results)


LEAVING = """
from functools import partial
from clvp.sampling import CandidateSampler, SamplingParams
from tests.sampling.small_models import prompt, small_decoder
engine = CandidateSampler(small_decoder()).engine(SamplingParams(max_new_tokens=120, min_new_tokens=120))
engine.start()
rows = [engine.submit(partial(prompt, number)) for number in range(1, 11)]
while not engine.stats.steps:
    pass
"""


def test_a_process_that_ends_while_it_decodes_ends_well() -> None:
    ended = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
