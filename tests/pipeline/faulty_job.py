"""The main job with rows or models that end their process by SIGKILL, as a crash in native code does.

FAULTS, in JSON: `{"audio": ID, "sample": ID, "rank": ID}` are rows that end the process of the stage,
`{"load": true}` ends every process that loads the sampler. Run as a program: workers get the classes of
`__main__` by value, so that nothing of this needs to be installed in them.
"""

import json
import os
import signal
from typing import Any

import pyarrow as pa

from jobs import synthesize
from pipeline import stages
from pipeline.stages.rank import Ranker
from pipeline.stages.sample import Sampler
from pipeline.stages.voices import AudioToMels

FAULTS: dict[str, Any] = json.loads(os.environ["FAULTS"])


def die_with(stage: str, table: pa.Table) -> None:
    if FAULTS.get(stage) in table["id"].to_pylist():
        os.kill(os.getpid(), signal.SIGKILL)


class FaultyAudio(AudioToMels):
    def __call__(self, table: pa.Table) -> pa.Table:
        die_with("audio", table)
        return super().__call__(table)


class FaultySampler(Sampler):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        if FAULTS.get("load"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(*arguments, **named)

    def __call__(self, table: pa.Table) -> pa.Table:
        die_with("sample", table)
        return super().__call__(table)


class FaultyRanker(Ranker):
    def __call__(self, table: pa.Table) -> pa.Table:
        die_with("rank", table)
        return super().__call__(table)


if __name__ == "__main__":
    stages.AudioToMels = FaultyAudio  # type: ignore[misc]
    stages.Sampler = FaultySampler  # type: ignore[misc]
    stages.Ranker = FaultyRanker  # type: ignore[misc]
    raise SystemExit(synthesize.main())
