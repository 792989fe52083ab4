"""The candidate sampling engine: conditioning embeddings of many rows in, speech tokens of their candidates
out.

Reading order: `params`, `sampler`, `cohort_decoder`, `cohort`; then `weights`, `prefill`, `lanes`, `filters`,
`noise`, `memory`, `invariance`.
"""

from clvp.sampling.params import (
    Candidate,
    EngineConfig,
    MelPositions,
    MemoryBudgetError,
    PromptRow,
    SamplingParams,
)
from clvp.sampling.sampler import CandidateSampler, SamplingStats

__all__ = [
    "Candidate",
    "CandidateSampler",
    "EngineConfig",
    "MelPositions",
    "MemoryBudgetError",
    "PromptRow",
    "SamplingParams",
    "SamplingStats",
]
