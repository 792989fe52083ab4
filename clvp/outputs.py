"""What the models return: dataclasses that behave like `transformers`' `ModelOutput`.

A field is reached as attribute (`out.logits`), by name (`out["logits"]`) or by position (`out[0]`); fields
that are None do not count, so that `tuple(out.values())`, `out.to_tuple()` and positions skip them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

# One (key, value) pair per decoder layer, each [B, heads, length, head_dim].
KeyValues = tuple[tuple[Tensor, Tensor], ...]


@dataclass
class ModelOutput(Mapping[str, Any]):
    """Tuple-like and mapping-like view of the fields that are not None."""

    def _present(self) -> dict[str, Any]:
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) is not None}

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self._present().values())

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._present()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())


@dataclass
class ClvpEncoderOutput(ModelOutput):
    """Of the text or the speech encoder: B sequences of L tokens, width D, projected to P."""

    embeds: Tensor | None = None  # [B, P] projection of the pooled state, not normalised
    last_hidden_state: Tensor | None = None  # [B, L, D]
    pooler_output: Tensor | None = None  # [B, D]
    hidden_states: tuple[Tensor, ...] | None = None  # layers + 1 of [B, L, D]; the last is last_hidden_state
    attentions: tuple[Tensor, ...] | None = None  # layers of [B, heads, L, L]


@dataclass
class ClvpDecoderOutput(ModelOutput):
    """Of the decoder without a head."""

    last_hidden_state: Tensor | None = None  # [B, L, D]
    past_key_values: KeyValues | None = None
    hidden_states: tuple[Tensor, ...] | None = None  # layers + 1 of [B, L, D]; the last is last_hidden_state
    attentions: tuple[Tensor, ...] | None = None  # layers of [B, heads, L, past + L]


@dataclass
class ClvpCausalLMOutput(ModelOutput):
    """Of the decoder with its language-modelling head."""

    loss: Tensor | None = None  # scalar
    logits: Tensor | None = None  # [B, L, vocabulary]
    past_key_values: KeyValues | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class ClvpGenerateOutput(ModelOutput):
    """Of `ClvpForCausalLM.generate`: k candidates for each of B prompts, at most T tokens long."""

    sequences: Tensor | None = None  # [B * k, 1 + T] with start and stop tokens, padded
    finished: Tensor | None = None  # [B * k] bool: the stop token was drawn


@dataclass
class ClvpOutput(ModelOutput):
    """Of the composite model: B texts and S speech sequences; after `generate`, S = B * k.

    Candidates of text i are the rows i * k ... (i + 1) * k - 1 of `speech_ids`.
    """

    loss: Tensor | None = None  # scalar, contrastive
    speech_ids: Tensor | None = None  # [S, scoring length]
    logits_per_speech: Tensor | None = None  # [S, B]
    logits_per_text: Tensor | None = None  # [B, S]
    text_embeds: Tensor | None = None  # [B, P], unit length
    speech_embeds: Tensor | None = None  # [S, P], unit length
    text_model_output: Tensor | None = None  # [B, D] pooled
    speech_model_output: Tensor | None = None  # [S, D] pooled
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    text_encoder_hidden_states: tuple[Tensor, ...] | None = None
    speech_encoder_hidden_states: tuple[Tensor, ...] | None = None
    finished: Tensor | None = None  # [S] bool, after `generate`: the stop token was drawn
