"""Generation settings: `generation_config.json` and keyword arguments to the sampling engine's parameters.

A missing entry of `generation_config.json` means what it means in `transformers`, above all `top_k` 50, which
applies to every sampled generation of the reference without being written anywhere. Here it is a field like
any other.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from clvp.checkpoint import CheckpointSource, write_json
from clvp.configuration import ClvpDecoderConfig
from clvp.sampling import Candidate, EngineConfig, MelPositions, PromptRow, SamplingParams, sampler_for

if TYPE_CHECKING:
    from clvp.decoder import ClvpForCausalLM

GENERATION_CONFIG_FILE = "generation_config.json"
TORTOISE_MAX_MEL_TOKENS = 500


def mel_position_ids(length: int, mel_positions: MelPositions) -> Tensor:
    """[length] mel positions of the start token and the tokens after it: 0, 1, 2 ... as trained, or 0, 2, 3
    ...

    Cached decoding in the references skips position 1.
    """
    positions = torch.arange(length)
    if mel_positions == "skip_one":
        positions[1:] += 1
    elif mel_positions != "trained":
        raise ValueError(f'mel_positions must be "trained" or "skip_one", not {mel_positions!r}')
    return positions


@dataclass(frozen=True)
class ClvpGenerationConfig:
    """How speech tokens are generated. Immutable: `replace` gives a changed copy."""

    max_new_tokens: int = TORTOISE_MAX_MEL_TOKENS
    min_new_tokens: int = 0
    num_return_sequences: int = 1  # candidates for each text
    do_sample: bool = False  # False: the most probable token
    temperature: float = 1.0
    top_k: int = 50  # 0: off
    top_p: float = 1.0  # 1: off
    typical_p: float = 1.0  # 1: off
    repetition_penalty: float = 1.0  # 1: off
    penalized_tokens: tuple[int, ...] = ()  # counted as seen by the repetition penalty; Tortoise: (1,)
    mel_positions: MelPositions = "trained"
    seed: int | None = None  # None: drawn from torch's default generator
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    output_hidden_states: bool = False
    # None: an output object from the composite model, a tensor from the decoder alone.
    return_dict_in_generate: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "penalized_tokens", tuple(self.penalized_tokens))
        object.__setattr__(self, "top_k", self.top_k or 0)
        for name in ("max_new_tokens", "num_return_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @classmethod
    def for_decoder(cls, config: ClvpDecoderConfig, longest: int = TORTOISE_MAX_MEL_TOKENS) -> Self:
        """Sampling as the published model does, for as many tokens as Tortoise or the positions allow."""
        return cls(
            max_new_tokens=min(longest, config.max_position_embeddings),
            do_sample=True,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )

    @classmethod
    def from_dict(cls, content: dict[str, Any], **overrides: Any) -> Self:
        """Settings from the content of a `generation_config.json`, entries without meaning here left out."""
        names = {item.name for item in dataclasses.fields(cls)}
        known = {key: value for key, value in content.items() if key in names and value is not None}
        return cls(**known).replace(**overrides)

    @classmethod
    def from_pretrained(cls, pretrained_model_name: str | os.PathLike[str], **overrides: Any) -> Self:
        """Settings from the `generation_config.json` of a folder or hub id; `overrides` replace fields."""
        content = CheckpointSource(pretrained_model_name).json(GENERATION_CONFIG_FILE)
        if content is None:
            raise FileNotFoundError(f"{pretrained_model_name} holds no {GENERATION_CONFIG_FILE}")
        return cls.from_dict(content, **overrides)

    @classmethod
    def from_source(cls, source: CheckpointSource, default: Self) -> Self:
        """Settings beside a checkpoint, or the default where it has none."""
        content = source.json(GENERATION_CONFIG_FILE)
        if content is None:
            return default
        return cls.from_dict({"max_new_tokens": default.max_new_tokens, **content})

    def replace(self, **changes: Any) -> Self:
        """A copy with other values. Raises TypeError naming fields that do not exist."""
        names = [item.name for item in dataclasses.fields(self)]
        unknown = [name for name in changes if name not in names]
        if "use_cache" in unknown and changes["use_cache"] is False:
            raise ValueError(
                "generate always decodes with a cache; forward(use_cache=False) gives the same logits without"
            )
        unknown = [name for name in unknown if name != "use_cache"]
        if unknown:
            raise TypeError(f"unknown generation settings {', '.join(unknown)}; known: {', '.join(names)}")
        return dataclasses.replace(self, **{key: value for key, value in changes.items() if key in names})

    def to_dict(self) -> dict[str, Any]:
        """Content of `generation_config.json`: what has a value."""
        content = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        return {**content, "penalized_tokens": list(self.penalized_tokens)}

    def to_json_string(self) -> str:
        """`generation_config.json` as text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `generation_config.json` into a folder."""
        write_json(Path(save_directory) / GENERATION_CONFIG_FILE, self.to_dict())

    def sampling_params(self) -> SamplingParams:
        """The sampling engine's parameters. Without a `seed`, one is drawn from torch's default generator."""
        seed = self.seed
        if seed is None:
            seed = int(torch.randint(2**31, ()).item()) if self.do_sample else 0
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            do_sample=self.do_sample,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            seed=seed,
            mel_positions=self.mel_positions,
            penalized_tokens=self.penalized_tokens,
        )


def check_generation(config: ClvpGenerationConfig, decoder: ClvpDecoderConfig) -> None:
    """Raise ValueError for settings that this decoder cannot follow."""
    # The last token drawn is never fed back, so that it needs no position.
    limit = decoder.max_position_embeddings - (config.mel_positions == "skip_one")
    if config.max_new_tokens > limit:
        raise ValueError(f"max_new_tokens {config.max_new_tokens} exceeds the model's {limit} mel positions")
    for name in ("bos_token_id", "eos_token_id"):
        wanted, own = getattr(config, name), getattr(decoder, name)
        if wanted is not None and wanted != own:
            raise ValueError(f"{name} {wanted} differs from the decoder's {own}, which generation uses")


def sample_prompts(
    decoder: "ClvpForCausalLM",
    prefixes: Sequence[Tensor],
    config: ClvpGenerationConfig,
    row_ids: Sequence[str] | None,
    engine_config: EngineConfig | None = None,
) -> list[list[Candidate]]:
    """`num_return_sequences` candidates for each prefix [P, D], in order, from the sampling engine.

    Without `row_ids`, a row is named after the number of equal rows before it, which no other row changes.
    """
    check_generation(config, decoder.config)
    if row_ids is None:
        row_ids = [
            str(sum(torch.equal(row, earlier) for earlier in prefixes[:i])) for i, row in enumerate(prefixes)
        ]
    if len(row_ids) != len(prefixes):
        raise ValueError(f"{len(row_ids)} row_ids do not name {len(prefixes)} rows")
    candidates = range(config.num_return_sequences)
    rows = [PromptRow(name, prefix, candidates) for name, prefix in zip(row_ids, prefixes, strict=True)]
    return sampler_for(decoder, engine_config).sample(rows, config.sampling_params())
