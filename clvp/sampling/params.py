"""What the sampler is asked for, and what it gives back. Plain frozen data, no behaviour beyond
validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

MelPositions = Literal["trained", "skip_one"]

_SMALL = 1e-30  # by this much, and its inverse, logits are divided without leaving float32


@dataclass(frozen=True)
class SamplingParams:
    """Everything that decides which tokens are drawn. The defaults are Tortoise's.

    The filters are applied in the order of `transformers`: repetition penalty, minimum length, temperature,
    top-k, top-p (Holtzman et al. 2020), typical (Meister et al. 2022).

    Raises:
        ValueError: a value is out of range; the message names the field.
    """

    max_new_tokens: int = 500  # speech tokens at most; 21.5 are a second
    min_new_tokens: int = 0  # the stop token is impossible before this many tokens
    do_sample: bool = True  # draw at random, not greedily the most probable token
    temperature: float = 0.8  # 1: as predicted
    top_k: int = 50  # most probable tokens to draw from; 0: all
    top_p: float = 0.8  # probability mass to draw from; 1: all
    typical_p: float = 1.0  # mass of the most typical tokens to draw from; 1: all
    repetition_penalty: float = 2.0  # of tokens that were there before; 1: off
    seed: int = 0  # of the random numbers
    # of speech tokens: 0,1,2,… or, as the reference generates, 0,2,3,…
    mel_positions: MelPositions = "trained"
    penalized_tokens: tuple[int, ...] = ()  # counted as there before; Tortoise's fake prompt is (1,)

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "min_new_tokens": 0 <= self.min_new_tokens <= self.max_new_tokens,
            "temperature": _SMALL <= self.temperature <= 1 / _SMALL,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "typical_p": 0 < self.typical_p <= 1,
            "repetition_penalty": _SMALL <= self.repetition_penalty <= 1 / _SMALL,
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

    # candidates decoded in one step; on a GPU the shape of its products: keep it for identical tokens; None:
    # 64 on a CPU, 256 on a GPU
    lanes: int | None = None
    kv_budget_bytes: int | None = None  # for keys and values; None: what is free, with head room
    # matrix products on a CPU, whose bits tokens depend on; None: the faster kind
    products: Literal["packed", "plain"] | None = None

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
