"""ClvpProcessor: reference audio and text to the inputs of the model, in one call."""

import os
from dataclasses import fields
from typing import Any, ClassVar, Self

from clvp.audio.features import ClvpFeatureExtractor
from clvp.batch import BatchFeature, Padding, Side, TensorType, Truncation
from clvp.checkpoint import HUB_OPTIONS
from clvp.text.tokenizer import ClvpTokenizer

_AUDIO_ARGUMENTS = {item.name for item in fields(ClvpFeatureExtractor)} - {"padding_side"}


class ClvpProcessor:
    """A feature extractor and a tokenizer that belong together, as attributes of these names."""

    model_input_names: ClassVar = ["input_ids", "input_features", "attention_mask"]

    def __init__(self, feature_extractor: ClvpFeatureExtractor, tokenizer: ClvpTokenizer) -> None:
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer

    def __call__(
        self,
        raw_speech: Any = None,
        sampling_rate: int | None = None,
        text: str | list[str] | None = None,
        *,
        audio: Any = None,
        padding: Padding = False,
        truncation: Truncation = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        add_special_tokens: bool = True,
        return_attention_mask: bool | None = True,
        return_tensors: TensorType | None = None,
    ) -> BatchFeature:
        """Inputs of `model.generate` or of the model itself.

        Audio is always cut or padded to the feature extractor's 6 seconds; `padding`, `truncation`,
        `max_length`, `pad_to_multiple_of` and `padding_side` are about text alone. Call `feature_extractor`
        for other audio lengths.

        `raw_speech`, whose newer name is `audio`, is a clip, a batch of clips, or a list with the clips of
        each voice: see `ClvpFeatureExtractor`. `text` is a text or a batch of texts, which goes with one
        voice or with as many voices as texts.

        Returns `input_ids` and the `attention_mask` of the text, and the `input_features` of audio. Audio
        alone comes with the mask of its samples.

        Raises ValueError for neither audio nor text, for text arguments without a text, and as feature
        extractor and tokenizer do.
        """
        if raw_speech is not None and audio is not None:
            raise ValueError("raw_speech and audio are two names of one argument: pass one of them")
        audio = raw_speech if audio is None else audio
        if audio is None and text is None:
            raise ValueError("pass raw_speech, text, or both")
        if text is None and max_length is not None:
            raise ValueError("max_length is about text; for audio, call processor.feature_extractor")
        batch = BatchFeature()
        if audio is not None:
            wants_audio_mask = text is None and return_attention_mask is not False
            batch |= self.feature_extractor(
                audio, sampling_rate, return_tensors=return_tensors, return_attention_mask=wants_audio_mask
            )
        if text is not None:
            batch |= self.tokenizer(
                text,
                add_special_tokens=add_special_tokens,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_tensors=return_tensors,
                return_attention_mask=return_attention_mask,
            )
        return batch

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """`ClvpTokenizer.decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """`ClvpTokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load both parts from a checkpoint folder or a hub id.

        `kwargs` are options of `huggingface_hub`, and arguments of `ClvpTokenizer` (such as
        `normalizer="tortoise"`, and `padding_side`) and of `ClvpFeatureExtractor`. Raises FileNotFoundError
        for no such folder or repository, or a part's missing files.
        """
        text = {name: value for name, value in kwargs.items() if name not in _AUDIO_ARGUMENTS}
        audio = {name: value for name, value in kwargs.items() if name in _AUDIO_ARGUMENTS | HUB_OPTIONS}
        return cls(
            ClvpFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **audio),
            ClvpTokenizer.from_pretrained(pretrained_model_name_or_path, **text),
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write the files of both parts into a folder; returns their paths."""
        return [
            *self.feature_extractor.save_pretrained(save_directory),
            *self.tokenizer.save_pretrained(save_directory),
        ]
