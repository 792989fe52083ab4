"""How long the fuzz tests run: CLVP_FUZZ_EXAMPLES raises the number of examples of each."""

import os
import random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = os.environ.get("CLVP_FUZZ_EXAMPLES")


def fuzzed(examples: int) -> Any:
    """Settings of a fuzz test: the same examples in every run of the suite, others in a long run."""
    return settings(
        max_examples=int(EXAMPLES or examples),
        derandomize=EXAMPLES is None,
        deadline=20_000,  # ms; a hang is a failure
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def mutations() -> st.SearchStrategy[int]:
    """Seeds for `mutated`; 0 leaves the bytes as they are."""
    return st.integers(0, 2**32 - 1)


def mutated(data: bytes, seed: int) -> bytes:
    """Bytes flipped, set, inserted, removed, repeated or cut off, at a few places."""
    if not seed:
        return data
    rng, out = random.Random(seed), bytearray(data)
    # Headers and footers decide most.
    low, high = rng.choice([(0, 1), (0, 1), (0, 0.1), (0.8, 1), (0, 0.02), (0.98, 1)])
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not out:
            break
        place = min(int((low + (high - low) * rng.random()) * len(out)), len(out) - 1)
        match rng.randrange(8):
            case 0 | 1:
                out[place] ^= 1 << rng.randrange(8)
            case 2 | 3:
                out[place] = rng.choice([0, 1, 0x0A, 0x22, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            case 4:
                out.insert(place, rng.randrange(256))
            case 5:
                del out[place : place + rng.choice([1, 1, 7, 100])]
            case 6:
                out[place:place] = out[place : place + rng.choice([4, 40])]
            case 7:
                out[place : place + 4] = rng.choice(
                    [b"\xff\xff\xff\x7f", b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"]
                )
    if rng.random() < 0.1:
        del out[int(rng.random() * len(out)) :]
    return bytes(out)
