"""Sizes and token ids of the CLVP models. Fields, names and defaults are those of `transformers`, two added:

- `ClvpEncoderConfig.rms_norm_eps`: the reference adds 1e-5 to the mean square, the original Tortoise modules
  nothing but a floor, which changes embeddings by up to 7%. Converted Tortoise checkpoints carry their own
  value.
- `ClvpConfig.scoring_length`: the length to which speech codes are padded before they are scored. The score
  depends on it, so that it is a constant of the model and not of the batch.

A `ClvpConfig()` describes the published model: its speech encoder knows 8192 speech tokens.
"""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from clvp.checkpoint import CheckpointError, CheckpointSource, content_of, write_json
from clvp.fields import Checked, Count

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class ClvpConfigBase(Checked):
    """What the three configurations share: reading and writing `config.json`."""

    model_type: ClassVar[str]
    sections: ClassVar[tuple[str, ...]] = ()  # of a composite configuration that describe this part

    # Entries of `config.json` that mean nothing here. They are saved again.
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True, compare=False, repr=False)

    @classmethod
    def from_dict(cls, content: dict[str, Any], **overrides: Any) -> Self:
        """Configuration from the content of a `config.json`; what is no field is kept in `extra`.

        Raises TypeError for an override that is no field.
        """
        names = {item.name for item in dataclasses.fields(cls)} - {"extra"}
        known = {key: value for key, value in content.items() if key in names}
        extra = {key: value for key, value in content.items() if key not in names and key != "model_type"}
        return cls(**{"extra": extra, **known, **overrides})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        config_type: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Configuration from a folder or hub id, a part's from the composite `config.json` too.

        `config_type` says which encoder: "text_config" (default) or "speech_config". `kwargs` are options of
        `huggingface_hub`, such as `revision`, and fields to replace.
        """
        source, overrides = CheckpointSource.parse(pretrained_model_name_or_path, kwargs)
        content = source.json(CONFIG_FILE)
        if content is None:
            raise FileNotFoundError(f"{pretrained_model_name_or_path} holds no {CONFIG_FILE}")
        if config_type is not None and config_type not in cls.sections:
            raise ValueError(f"config_type of {cls.__name__} is one of {cls.sections}, not {config_type!r}")
        if cls.sections and content.get("model_type") == ClvpConfig.model_type:
            config_type = config_type or cls.sections[0]
            content = content.get(config_type) or {}
        if not isinstance(content, dict):
            raise CheckpointError(f"{config_type} in {CONFIG_FILE} of {source.location} is no object")
        found = content.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise CheckpointError(
                f"{CONFIG_FILE} of {source.location} describes a model of type {found!r}, not "
                f"{cls.model_type!r}"
            )
        with content_of(CONFIG_FILE, source):
            return cls.from_dict(content, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """Content of `config.json`."""
        content = dataclasses.asdict(self)
        return {**content.pop("extra"), **content, "model_type": self.model_type}

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `config.json` into a folder, which is made if need be."""
        write_json(Path(save_directory) / CONFIG_FILE, self.to_dict())


def _require_heads(name: str, hidden_size: int, heads: int) -> None:
    if hidden_size % heads:
        raise ValueError(f"{name}: hidden_size {hidden_size} is no multiple of num_attention_heads {heads}")


@dataclass(frozen=True)
class ClvpEncoderConfig(ClvpConfigBase):
    """The text encoder or the speech encoder."""

    model_type: ClassVar[str] = "clvp_encoder"
    sections: ClassVar[tuple[str, ...]] = ("text_config", "speech_config")

    vocab_size: Count = 256
    hidden_size: Count = 768
    intermediate_size: Count = 1536
    projection_dim: Count = 768
    num_hidden_layers: Count = 20
    num_attention_heads: Count = 12
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.1
    dropout: float = 0.1
    use_rotary_embedding: bool = True
    use_attention_bias: bool = False
    summary_type: str = "mean"
    initializer_factor: float = 1.0
    bos_token_id: int | None = 255
    eos_token_id: int | None = 0
    pad_token_id: int | None = None
    rms_norm_eps: float | None = None  # None: layer_norm_eps, as in the reference

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_heads("ClvpEncoderConfig", self.hidden_size, self.num_attention_heads)
        head_dim = self.hidden_size // self.num_attention_heads
        if self.use_rotary_embedding and self.rotary_dim > head_dim:
            raise ValueError(
                f"ClvpEncoderConfig: the rotary embedding turns {self.rotary_dim} dimensions of a head, "
                f"which has only {head_dim}; use fewer attention heads or a larger hidden_size"
            )

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that the rotary embedding turns: half a head, 32 at least."""
        return max(self.projection_dim // (2 * self.num_attention_heads), 32)


@dataclass(frozen=True)
class ClvpDecoderConfig(ClvpConfigBase):
    """The autoregressive speech-token model and, by its sizes, the conditioning encoder.

    `max_position_embeddings` is the number of mel positions, `max_text_tokens` that of text positions.
    """

    model_type: ClassVar[str] = "clvp_decoder"
    sections: ClassVar[tuple[str, ...]] = ("decoder_config",)

    vocab_size: Count = 8194
    max_position_embeddings: Count = 608
    max_text_tokens: Count = 404
    hidden_size: Count = 1024
    num_hidden_layers: Count = 30
    num_attention_heads: Count = 16
    n_inner: Count | None = None  # None: 4 * hidden_size
    num_mel_attn_blocks: Count = 6
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int = 8192
    eos_token_id: int = 8193
    pad_token_id: int | None = None
    feature_size: Count = 80
    use_attention_bias: bool = True
    initializer_factor: float = 1.0
    decoder_fixing_codes: tuple[int, ...] = (83, 45, 45, 248)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_heads("ClvpDecoderConfig", self.hidden_size, self.num_attention_heads)
        if len(self.decoder_fixing_codes) != 4:
            raise ValueError(
                "ClvpDecoderConfig: decoder_fixing_codes are four, one that fills and three that end; got "
                f"{list(self.decoder_fixing_codes)}"
            )

    @property
    def inner_size(self) -> int:
        """Width of the feed-forward layers."""
        return 4 * self.hidden_size if self.n_inner is None else self.n_inner


@dataclass(frozen=True)
class ClvpConfig(ClvpConfigBase):
    """The composite model. Parts may be given as configurations or as dictionaries of their fields."""

    model_type: ClassVar[str] = "clvp"

    text_config: ClvpEncoderConfig = field(default_factory=ClvpEncoderConfig)
    speech_config: ClvpEncoderConfig = field(default_factory=lambda: ClvpEncoderConfig(vocab_size=8192))
    decoder_config: ClvpDecoderConfig = field(default_factory=ClvpDecoderConfig)
    projection_dim: Count = 768
    logit_scale_init_value: float = 2.6592
    initializer_factor: float = 1.0
    scoring_length: Count = 500

    def __post_init__(self) -> None:
        for name, part_class in _PARTS.items():
            part = getattr(self, name)
            if part is None:
                object.__setattr__(self, name, getattr(ClvpConfig(), name))
            elif isinstance(part, dict):
                try:
                    object.__setattr__(self, name, part_class.from_dict(part))
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
            elif isinstance(part, ClvpConfigBase) and not isinstance(part, part_class):
                raise TypeError(
                    f"{name} must be a {part_class.__name__} or a dict, not {type(part).__name__}"
                )
        super().__post_init__()
        if self.text_config.projection_dim != self.speech_config.projection_dim:
            raise ValueError(
                "the projection_dim of text_config and speech_config must be equal to be compared; got "
                f"{self.text_config.projection_dim} and {self.speech_config.projection_dim}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Content of `config.json`."""
        return {**super().to_dict(), **{name: getattr(self, name).to_dict() for name in _PARTS}}


_PARTS: dict[str, type[ClvpEncoderConfig] | type[ClvpDecoderConfig]] = {
    "text_config": ClvpEncoderConfig,
    "speech_config": ClvpEncoderConfig,
    "decoder_config": ClvpDecoderConfig,
}
