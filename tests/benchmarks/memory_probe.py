"""One case of the memory benchmark, in its own process: prints a `Peak` as JSON."""

import ctypes
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from clvp.sampling import CandidateSampler, EngineConfig

from .harness import Options, Size, wait_for
from .workload import Workload, drawn_length, fixed_length, ours, prompts, real_prefixes


@dataclass(frozen=True)
class Case:
    """What to sample within how much."""

    size: Size
    rows: int
    candidates: int
    tokens: int  # at most, per candidate
    budget: int  # bytes


@dataclass(frozen=True)
class Peak:
    """What was measured."""

    above: int | None  # bytes at the peak above what was held before; None: this system does not tell
    all_at_once: int  # bytes of keys and values of all candidates at the limit
    finished: int  # candidates
    seconds: float


class Meter:
    """The peak of the memory in use since the meter was made, above what was in use then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before: int | None = torch.cuda.memory_allocated(device)
        else:
            self.before = _reset_peak()

    def peak(self) -> int | None:
        """Bytes, or None where it cannot be told."""
        if self.before is None:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _status("VmHWM") - self.before


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def _reset_peak() -> int | None:
    """Gives free memory back to the system, and lowers the recorded peak to what is held: Linux only."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def probe(case: Case, device: torch.device, seed: int) -> Peak:
    """Samples the case's candidates once, with lengths drawn up to the limit."""
    options = Options(case.size, device, case.tokens, prefix=64, repetitions=1, lanes=None, seed=seed)
    workload = Workload(options)
    sampler = CandidateSampler(workload.model, EngineConfig(kv_budget_bytes=case.budget))
    rows = prompts(real_prefixes(case.rows, seed), case.candidates, options)
    ours(
        sampler, prompts([options.prefix], 1, options), fixed_length(2)
    )  # what is loaded once is no part of it
    wait_for(device)
    meter, start = Meter(device), time.perf_counter()
    finished = 0
    for _, candidates in sampler.sample_iter(rows, drawn_length(case.tokens)):  # kept by nobody
        finished += sum(candidate.finished for candidate in candidates)
    wait_for(device)
    positions = sum(row.prefix_PD.shape[0] + case.candidates * case.tokens for row in rows)
    return Peak(
        above=meter.peak(),
        all_at_once=sampler.weights.kv_bytes_per_token * positions,
        finished=finished,
        seconds=time.perf_counter() - start,
    )


if __name__ == "__main__":
    question = json.loads(sys.argv[1])
    torch.set_num_threads(question["threads"])
    peak = probe(Case(**question["case"]), torch.device(question["device"]), question["seed"])
    print(json.dumps(asdict(peak)))
