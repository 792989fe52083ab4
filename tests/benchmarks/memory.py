"""Peak memory against the plan: each case in a process of its own, above what it held before sampling."""

import json
import subprocess
import sys
from dataclasses import asdict

import torch

from .harness import Options, Table, short, tell
from .memory_probe import Case, Peak
from .report import ROOT, main
from .workload import Workload

MIB = 2**20

CPU_CASES = (
    Case("small", rows=8, candidates=1000, tokens=32, budget=24 * MIB),
    Case("full", rows=1, candidates=64, tokens=24, budget=512 * MIB),
    Case("full", rows=2, candidates=64, tokens=24, budget=160 * MIB),
)
GPU_CASES = (
    Case("tiny", rows=2, candidates=8, tokens=8, budget=MIB),
    Case("small", rows=8, candidates=1000, tokens=256, budget=512 * MIB),
    Case("full", rows=4, candidates=256, tokens=256, budget=8192 * MIB),
    Case("full", rows=4, candidates=256, tokens=256, budget=2048 * MIB),
)


def run(workload: Workload) -> list[Table]:
    """One table."""
    options = workload.options
    sizes = ("full", "small") if options.size == "full" else (options.size,)
    cases = [case for case in (GPU_CASES if options.on_gpu else CPU_CASES) if case.size in sizes]
    return [
        Table(
            title="Peak memory against the plan",
            columns=[
                "model",
                "rows × candidates",
                "all at once, MiB",
                "budget, MiB",
                "measured peak, MiB",
                "of the budget",
                "finished",
                "seconds",
            ],
            rows=[_line(case, measure(case, options)) for case in cases],
            notes="Each case in its own process. Measured: the peak of the resident set (on a GPU: of the "
            "memory allocated) while sampling, above what was held before, results and logits included; the "
            "budget is for keys and values. All at once: keys and values of all candidates at the length "
            "limit.",
        )
    ]


def measure(case: Case, options: Options) -> Peak:
    """Runs the case in a new process."""
    tell(f"memory: {case.size} model, {case.rows} rows × {case.candidates} candidates")
    question = {"case": asdict(case), "device": options.device.type, "seed": options.seed}
    question["threads"] = torch.get_num_threads()
    answer = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.memory_probe", json.dumps(question)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Peak(**json.loads(answer.stdout.splitlines()[-1]))


def _line(case: Case, peak: Peak) -> list[str]:
    return [
        case.size,
        f"{case.rows} × {case.candidates:,}",
        short(peak.all_at_once / MIB),
        short(case.budget / MIB),
        short(peak.above / MIB) if peak.above is not None else "not measured",
        f"{peak.above / case.budget:.0%}" if peak.above is not None else "",
        f"{peak.finished:,} of {case.rows * case.candidates:,}",
        short(peak.seconds),
    ]


if __name__ == "__main__":
    main(run, __doc__)
