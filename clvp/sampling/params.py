"""What the sampler is asked for, and what it gives back: frozen data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from clvp.fields import Checked, Count, Index, Share

if TYPE_CHECKING:
    from torch import Tensor

MelPositions = Literal["trained", "skip_one"]
DEFAULT_LANES = {"cpu": 64, "cuda": 256}

_SMALL = 1e-30  # by this much, and its inverse, logits are divided without leaving float32
Scale = Annotated[float, Field(ge=_SMALL, le=1 / _SMALL)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
SpeechToken = Annotated[int, Field(ge=0, lt=2**16)]


@dataclass(frozen=True)
class SamplingParams(Checked):
    """Everything that decides which tokens are drawn. The defaults are Tortoise's.

    The filters are applied in the order of `transformers`: repetition penalty, minimum length, temperature,
    top-k, top-p (Holtzman et al. 2020), typical (Meister et al. 2022). Raises ValueError naming a field that
    is out of range.
    """

    max_new_tokens: Count = 500  # speech tokens at most; 21.5 are a second
    min_new_tokens: Index = 0  # the stop token is impossible before this many tokens
    do_sample: bool = True  # draw at random, not greedily the most probable token
    temperature: Scale = 0.8  # 1: as predicted
    top_k: Index = 50  # most probable tokens to draw from; 0: all
    top_p: Share = 0.8  # probability mass to draw from; 1: all
    typical_p: Share = 1.0  # mass of the most typical tokens to draw from; 1: all
    repetition_penalty: Scale = 2.0  # of tokens that were there before; 1: off
    seed: Int64 = 0  # of the random numbers
    # of speech tokens: 0,1,2,… or, as the reference generates, 0,2,3,…
    mel_positions: MelPositions = "trained"
    penalized_tokens: tuple[SpeechToken, ...] = ()  # counted as there before, as Tortoise's fake prompt 1 is

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is out of range")


@dataclass(frozen=True)
class EngineConfig(Checked):
    """How the sampler uses the machine. Of these, `lanes` on a GPU and `products` on a CPU are among the
    `CandidateSampler.facts` that tokens depend on; the rest never changes a token.
    """

    # candidates decoded in one step; on a GPU the shape of its products: keep it for identical tokens; None:
    # 64 on a CPU, 256 on a GPU
    lanes: Count | None = None
    # for keys and values; None: what is free, with head room
    kv_budget_bytes: Annotated[int, Field(ge=1)] | None = None
    # matrix products on a CPU, whose bits tokens depend on; None: the faster kind
    products: Literal["packed", "plain"] | None = None


@dataclass(frozen=True)
class PromptRow:
    """One text with one voice, embedded, and the candidates wanted of it."""

    row_id: str  # keys the random numbers, with the seed
    prefix_PD: "Tensor"  # [P, D]: conditioning latent, text and stop embeddings of this row alone, unpadded
    candidates: Sequence[int]  # candidate indices, e.g. range(16); range(16, 32) extends an earlier 16


@dataclass(frozen=True)
class Candidate:
    """One sampled sequence of speech tokens."""

    row_id: str
    candidate: int
    tokens: "Tensor"  # [T] int64 on the CPU, without the start and the stop token
    finished: bool  # the stop token was drawn before the length limit


class MemoryBudgetError(MemoryError):
    """The key-value budget cannot hold a single candidate."""
