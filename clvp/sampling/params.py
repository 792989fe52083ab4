"""What the sampler is asked for, and what it gives back. Plain frozen data, no behaviour beyond
validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

MelPositions = Literal["trained", "skip_one"]


@dataclass(frozen=True)
class SamplingParams:
    """Everything that decides which tokens are drawn. The defaults are Tortoise's.

    The filters are applied in the order of `transformers`: repetition penalty, minimum length, temperature,
    top-k, top-p (Holtzman et al. 2020), typical (Meister et al. 2022).

    Raises:
        ValueError: a value is out of range; the message names the field.
    """

    max_new_tokens: int = 500
    min_new_tokens: int = 0  # the stop token is impossible before this many tokens
    do_sample: bool = True  # False: greedy, the most probable token
    temperature: float = 0.8
    top_k: int = 50  # 0: off
    top_p: float = 0.8  # 1: off
    typical_p: float = 1.0  # 1: off
    repetition_penalty: float = 2.0  # 1: off
    seed: int = 0
    mel_positions: MelPositions = "trained"  # 0,1,2,… or, as the reference generates, 0,2,3,…
    penalized_tokens: tuple[int, ...] = ()  # counted as already seen; Tortoise's fake prompt is (1,)

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "min_new_tokens": 0 <= self.min_new_tokens <= self.max_new_tokens,
            "temperature": self.temperature > 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "typical_p": 0 < self.typical_p <= 1,
            "repetition_penalty": self.repetition_penalty > 0,
            "mel_positions": self.mel_positions in ("trained", "skip_one"),
        }
        for name, good in checks.items():
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r} is out of range")


@dataclass(frozen=True)
class EngineConfig:
    """How the sampler uses the machine. Of these, `lanes` on a GPU and `products` on a CPU are among the
    `CandidateSampler.facts` that tokens depend on; the rest never changes a token.
    """

    lanes: int | None = None  # candidates decoded in one step; None: 64 on a CPU, 256 on a GPU
    kv_budget_bytes: int | None = (
        None  # keys and values may take this much; None: what is free, with head room
    )
    products: Literal["packed", "plain"] | None = None  # of a CPU; None: the faster kind, see `invariance`

    def __post_init__(self) -> None:
        if self.lanes is not None and self.lanes < 1:
            raise ValueError(f"lanes={self.lanes} must be at least 1")
        if self.kv_budget_bytes is not None and self.kv_budget_bytes < 1:
            raise ValueError(f"kv_budget_bytes={self.kv_budget_bytes} must be positive")
        if self.products not in (None, "packed", "plain"):
            raise ValueError(f'products={self.products!r} must be "packed", "plain" or None')


@dataclass(frozen=True)
class PromptRow:
    """One text with one voice, embedded, and the candidates wanted of it."""

    row_id: str  # keys the random numbers, with the seed
    prefix_PD: Tensor  # [P, D]: conditioning latent, text and stop embeddings of this row alone, unpadded
    candidates: Sequence[int]  # candidate indices, e.g. range(16); range(16, 32) extends an earlier 16


@dataclass(frozen=True)
class Candidate:
    """One sampled sequence of speech tokens."""

    row_id: str
    candidate: int
    tokens: Tensor  # [T] int64 on the CPU, without the start and the stop token
    finished: bool  # the stop token was drawn before the length limit


class MemoryBudgetError(MemoryError):
    """The key-value budget cannot hold a single candidate."""
