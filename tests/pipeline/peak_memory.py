"""A process that reads a manifest as the tasks of a run do, and prints the peak of its memory as JSON.

python -m tests.pipeline.peak_memory MANIFEST ROWS_PER_BLOCK
"""

import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import torch

from clvp.audio.mel import log_mel
from pipeline.rows.manifest import open_manifest
from pipeline.rows.memory import reading_memory
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import make_plan, rejected_rows, select_rows
from pipeline.rows.read import read_block
from pipeline.rows.scan import scan
from pipeline.stages.tokens import TextToTokens
from pipeline.stages.voices import AudioToMels

AUDIO_SECONDS = 6.0


def peak_bytes() -> int:
    """Of this process since it began; `getrusage` would count what its parent held as well."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise OSError("no VmHWM in /proc/self/status")


def read_all(path: str, rows_per_block: int) -> tuple[int, Counter[str]]:
    """Every row through scan, read, validate and audio: the bytes that a task reserves, and how many rows
    ended in which way.
    """
    manifest, index = scan(open_manifest([path], AUDIO_PAYLOAD))
    selection = select_rows(index, pa.chunked_array([], pa.large_string()))
    ends = Counter(row.error.kind for row in rejected_rows(manifest, index, selection))
    plan = make_plan(index, selection.todo, rows_per_block)
    texts, audio = TextToTokens(lambda text: [1] * len(text), 401), AudioToMels(log_mel, AUDIO_SECONDS)
    for number in range(plan.num_blocks):
        errors = audio(texts(read_block(manifest, plan.block(number))))["error"].to_pylist()
        ends.update("good" if error is None else error["type"] for error in errors)
    return reading_memory(rows_per_block, AUDIO_SECONDS, index.page_bytes), ends


if __name__ == "__main__":
    torch.set_num_threads(1)
    bound, counts = read_all(sys.argv[1], int(sys.argv[2]))
    print(json.dumps({"bound": bound, "peak": peak_bytes(), "rows": counts}))
