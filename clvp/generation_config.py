"""Generation settings: `generation_config.json` and keyword arguments to the sampling engine's parameters."""

import dataclasses
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch

from clvp.checkpoint import CheckpointSource, content_of, write_json
from clvp.config import ClvpDecoderConfig
from clvp.sampling import SamplingParams

GENERATION_CONFIG_FILE = "generation_config.json"


@dataclass(frozen=True)
class ClvpGenerationConfig(SamplingParams):
    """How speech tokens are generated. Immutable: `replace` gives a changed copy.

    The fields of `SamplingParams`, with the defaults of `transformers` in place of Tortoise's: a missing
    entry of `generation_config.json` means what it means there, `top_k` 50 included, which applies to every
    sampled generation of the reference without being written anywhere. Most ranges are checked by
    `sampling_params`.
    """

    max_new_tokens: int = SamplingParams.max_new_tokens
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None  # type: ignore[assignment]  # None: drawn from torch's default generator
    num_return_sequences: int = 1  # candidates for each text
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    output_hidden_states: bool = False
    # None: an output object from the composite model, a tensor from the decoder alone.
    return_dict_in_generate: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "top_k", self.top_k or 0)
        super().__post_init__()
        for name in ("max_new_tokens", "num_return_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @classmethod
    def for_decoder(cls, config: ClvpDecoderConfig, longest: int = SamplingParams.max_new_tokens) -> Self:
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
        names = {item.name for item in fields(cls)}
        known = {key: value for key, value in content.items() if key in names and value is not None}
        return cls(**known).replace(**overrides)

    @classmethod
    def from_pretrained(cls, pretrained_model_name: str | os.PathLike[str], **overrides: Any) -> Self:
        """Settings from the `generation_config.json` of a folder or hub id; `overrides` replace fields."""
        source = CheckpointSource(pretrained_model_name)
        if source.file(GENERATION_CONFIG_FILE) is None:
            raise FileNotFoundError(f"{pretrained_model_name} holds no {GENERATION_CONFIG_FILE}")
        return cls().beside(source).replace(**overrides)

    def beside(self, source: CheckpointSource) -> Self:
        """The settings beside a checkpoint, or these where it has none."""
        content = source.json(GENERATION_CONFIG_FILE)
        if content is None:
            return self
        with content_of(GENERATION_CONFIG_FILE, source):
            return self.from_dict({"max_new_tokens": self.max_new_tokens, **content})

    def replace(self, **changes: Any) -> Self:
        """A copy with other values. Raises TypeError naming fields that do not exist.

        `max_length` is the length of the sequences, the start token included, where there is no
        `max_new_tokens`. None changes nothing where it is no value, and neither does one beam.
        """
        nullable = {"top_k", *(item.name for item in fields(self) if item.default is None)}
        changes = {name: value for name, value in changes.items() if value is not None or name in nullable}
        if "max_length" in changes:
            length = changes.pop("max_length")
            changes.setdefault("max_new_tokens", length - 1)
        if changes.get("num_beams") == 1:
            del changes["num_beams"]
        if changes.pop("use_cache", True) is False:
            raise ValueError(
                "generate always decodes with a cache; forward(use_cache=False) gives the same logits without"
            )
        names = [item.name for item in fields(self)]
        unknown = [name for name in changes if name not in names]
        if unknown:
            raise TypeError(
                f"unknown generation settings {', '.join(unknown)}; known: {', '.join(names)} (see "
                "docs/transformers.md)"
            )
        return dataclasses.replace(self, **changes)

    def for_call(self, given: Any = None, **changes: Any) -> Self:
        """The settings of one call to a model with these: those `given` in their place, with `changes`.

        What a `GenerationConfig` of `transformers` sets replaces these, and nothing else, as it does there.
        Raises TypeError for anything else, and for settings that do not exist here.
        """
        if given is None or isinstance(given, type(self)):
            return (given or self).replace(**changes)
        if not hasattr(given, "to_diff_dict"):
            raise TypeError(f"generation_config must be a ClvpGenerationConfig, not a {type(given).__name__}")
        found = {name: value for name, value in given.to_diff_dict().items() if not name.startswith("_")}
        found.pop("transformers_version", None)
        return self.replace(**(found | changes))

    def to_dict(self) -> dict[str, Any]:
        """Content of `generation_config.json`: what has a value."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `generation_config.json` into a folder."""
        write_json(Path(save_directory) / GENERATION_CONFIG_FILE, self.to_dict())

    def sampling_params(self) -> SamplingParams:
        """The sampling engine's parameters. Without a `seed`, one is drawn from torch's default generator."""
        values = {item.name: getattr(self, item.name) for item in fields(SamplingParams)}
        if self.seed is None:
            values["seed"] = int(torch.randint(2**31, ()).item()) if self.do_sample else 0
        return SamplingParams(**values)


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
