"""The tests that depend on arithmetic, as other processors would run them.

    make test-kernels

Libraries choose their kernels by the processor; here they are told to choose as on another one, in every
combination that this processor can do. Ends with a table, and with exit code 1 where a test has failed.
"""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "tests/sampling",
    "tests/waveform",
    "tests/clvp/test_golden_hf.py",
    "tests/clvp/test_golden_tortoise.py",
    "tests/clvp/test_golden_generation.py",
    "tests/clvp/test_transformers_parity.py",
    "tests/clvp/test_features.py",
    "tests/clvp/test_scoring.py",
    "tests/clvp/test_model.py",
    "tests/pipeline/test_audio.py",
    "tests/pipeline/test_decode.py",
    "tests/pipeline/test_sample.py",
    "tests/pipeline/test_rank.py",
    "tests/pipeline/test_best_of_n.py",
    "tests/pipeline/test_unlike_processors.py",
    "tests/pipeline/test_run.py",
)


@dataclass(frozen=True)
class Kernels:
    """One processor's choice. `needs` is a flag of /proc/cpuinfo."""

    name: str
    needs: str
    onednn: str
    aten: str
    mkl: str
    openblas: str
    threads: int

    @property
    def environment(self) -> dict[str, str]:
        chosen = {
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "ATEN_CPU_CAPABILITY": self.aten,
            "MKL_ENABLE_INSTRUCTIONS": self.mkl,
            "OMP_NUM_THREADS": str(self.threads),
        }
        # A machine on which OpenBLAS must not choose by itself says so; that stays.
        return {"OPENBLAS_CORETYPE": self.openblas, **os.environ, **chosen}


MATRIX = (
    Kernels("no AVX", "sse4_2", "SSE41", "default", "SSE4_2", "Haswell", 1),
    Kernels("AVX2, Intel", "avx2", "AVX2", "avx2", "AVX2", "Haswell", 1),
    Kernels("AVX2, AMD", "avx2", "AVX2", "avx2", "AVX2", "Zen", 2),
    Kernels("AVX2 nodes with AVX512 products", "avx512f", "AVX512_CORE", "avx2", "AVX2", "Zen", 2),
    Kernels("AVX512", "avx512f", "AVX512_CORE", "avx512", "AVX512", "SkylakeX", 2),
)


def main() -> int:
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].split())  # type: ignore[index]
    rows, failed = [], False
    for kernels in MATRIX:
        if kernels.needs not in flags:
            rows.append((kernels, f"skipped: this processor has no {kernels.needs}", 0.0))
            continue
        started = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", *TESTS, *sys.argv[1:]]
        done = subprocess.run(command, cwd=ROOT, env=kernels.environment, capture_output=True, text=True)
        lines = done.stdout.strip().splitlines() or [done.stderr]
        rows.append(
            (kernels, re.sub(r" in [\d.]+s.*", "", lines[-1].strip("= ")), time.monotonic() - started)
        )
        if done.returncode:
            failed = True
            print(done.stdout[-6000:], flush=True)
        print(f"{kernels.name}: {rows[-1][1]}, {rows[-1][2]:.0f} s", flush=True)
    print(
        "\n| processor | oneDNN | ATen | MKL | OpenBLAS | threads | | seconds |", "|---" * 8 + "|", sep="\n"
    )
    for k, outcome, seconds in rows:
        print(
            f"| {k.name} | {k.onednn} | {k.aten} | {k.mkl} | {k.openblas} | {k.threads} | {outcome} "
            f"| {seconds:.0f} |"
        )
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
