"""When to kill what: drawn from a seed, to be repeated as far as the pace of the machine allows."""

import random
from dataclasses import dataclass
from typing import Literal

Victim = Literal["driver", "sampler", "ranker", "decoder", "audio", "raylet", "gcs", "ray"]
Phase = Literal["startup", "streaming", "publishing", "end"]
VICTIMS: tuple[Victim, ...] = (
    "driver",
    "sampler",
    "ranker",
    "decoder",
    "audio",
    "raylet",
    "gcs",
    "ray",
)
PHASES: tuple[Phase, ...] = ("streaming", "publishing", "startup")

MAX_DELAY = {"startup": 9.0, "streaming": 1.5, "publishing": 0.1, "end": 0.4}  # seconds


@dataclass(frozen=True)
class Kill:
    """One SIGKILL, `delay` seconds after the beginning of its phase.

    `startup` begins with the session (for a worker: with the first one), `streaming` when `share` of the rows
    are stored, `publishing` with the next new file in `data` after that, `end` when all rows are stored.
    """

    victim: Victim
    phase: Phase
    share: float
    delay: float

    def __str__(self) -> str:
        share = f" at {self.share:.0%}" if self.phase in ("streaming", "publishing") else ""
        return f"{self.victim}, {self.delay:.2f} s into {self.phase}{share}"


def draw_kills(count: int, seed: int) -> list[Kill]:
    """Victims in turn, over the whole length of the run; the last one at its very end."""
    generator = random.Random(seed)
    kills = []
    for i in range(count):
        phase: Phase = "end" if i == count - 1 else PHASES[(i + i // len(PHASES)) % len(PHASES)]
        share = (i + generator.random()) / (count + 1)
        kills.append(Kill(VICTIMS[i % len(VICTIMS)], phase, share, generator.uniform(0, MAX_DELAY[phase])))
    return kills
