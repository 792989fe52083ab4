"""The candidate sampling engine: conditioning embeddings of many rows in, their candidates' tokens out.

Reading order: `params`, `sampler`, `engine`, `cpu_decoder`, `cohort`; then `decode_weights`, `prefill`,
`lanes`, `filters`, `noise`, `memory`, `invariance`; `gpu_decoder` and `gpu_attention` for GPUs.
"""

from typing import TYPE_CHECKING

from clvp.lazy import imported_late

if TYPE_CHECKING:
    from clvp.sampling.engine import Engine, SamplingStats
    from clvp.sampling.params import (
        Candidate,
        EngineConfig,
        MelPositions,
        MemoryBudgetError,
        PromptRow,
        SamplingParams,
    )
    from clvp.sampling.sampler import CandidateSampler

__all__ = [
    "Candidate",
    "CandidateSampler",
    "Engine",
    "EngineConfig",
    "MelPositions",
    "MemoryBudgetError",
    "PromptRow",
    "SamplingParams",
    "SamplingStats",
]

__getattr__ = imported_late(__file__)
