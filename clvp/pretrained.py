"""What every CLVP model shares: loading, saving, gradient checkpointing."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from clvp.checkpoint import CheckpointSource, load_weights, save_weights, write_json
from clvp.config import CONFIG_FILE, ClvpConfigBase

Dtype = torch.dtype | str | None


def parse_dtype(dtype: Dtype) -> torch.dtype | None:
    """A floating-point dtype from its name; None and "auto" stand for the one that the checkpoint is stored
    in.
    """
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be a floating-point torch dtype or its name, not {dtype!r}")
    return found


class ClvpPreTrainedModel(nn.Module):
    """Base of all public models. Subclasses name their configuration, where a composite checkpoint holds
    them, and the module that embeds `input_ids`.
    """

    config_class: ClassVar[type[ClvpConfigBase]]
    checkpoint_prefixes: ClassVar[tuple[str, ...]] = ()
    input_embeddings: ClassVar[str]
    generation_config: Any = None  # of the models that generate: a ClvpGenerationConfig

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} needs a {self.config_class.__name__}, not a {type(config).__name__}"
            )
        self.config: Any = config
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: ClvpConfigBase | None = None,
        config_type: str | None = None,
        dtype: Dtype = None,
        device: torch.device | str | None = None,
        **hub: Any,
    ) -> Self:
        """Model in evaluation mode from a folder or hub id; a part also loads from the checkpoint of the
        whole.

        `dtype` None keeps the stored one, `device` None means CPU. `config_type` ("text_config" or
        "speech_config") tells which encoder a `ClvpEncoder` reads out of a composite checkpoint. `hub` are
        options of `huggingface_hub`, such as `revision`.

        Raises CheckpointError naming missing, unexpected and misshaped weights, FileNotFoundError for absent
        files.
        """
        source, unknown = CheckpointSource.parse(pretrained_model_name_or_path, hub)
        if unknown:
            raise TypeError(f"{cls.__name__}.from_pretrained knows no argument {', '.join(unknown)}")
        if config is None:
            config = cls.config_class.from_pretrained(pretrained_model_name_or_path, config_type, **hub)
        with torch.device("meta"):
            model = cls(config)
        prefixes = cls._prefixes(config_type)
        load_weights(model, source, prefixes, dtype=parse_dtype(dtype), device=device)
        if model.generation_config is not None:
            model.generation_config = model.generation_config.beside(source)
        return model.eval()

    @classmethod
    def _prefixes(cls, config_type: str | None) -> tuple[str, ...]:
        return cls.checkpoint_prefixes

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, max_shard_size: int | str = "5GB"
    ) -> None:
        """Write configuration and weights into a folder that this package and `transformers` load."""
        folder = Path(save_directory)
        about = {"architectures": [type(self).__name__], "dtype": str(self.dtype).removeprefix("torch.")}
        write_json(folder / CONFIG_FILE, self.config.to_dict() | about)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)
        save_weights(self, folder, max_shard_size)

    def get_input_embeddings(self) -> nn.Embedding:
        """What `input_ids` are embedded by."""
        return cast(nn.Embedding, self.get_submodule(self.input_embeddings))

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace what `input_ids` are embedded by."""
        self.set_submodule(self.input_embeddings, value)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(self.parameters()).dtype

    def num_parameters(self) -> int:
        """Number of weights that can be trained; the rotary frequencies are none."""
        return sum(parameter.numel() for parameter in self.parameters())

    def gradient_checkpointing_enable(self) -> None:
        """Trade computation for memory in training: layers are computed again in the backward pass."""
        self._set_gradient_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations for the backward pass again."""
        self._set_gradient_checkpointing(False)

    def _set_gradient_checkpointing(self, value: bool) -> None:
        for module in self.modules():
            if isinstance(module, ClvpPreTrainedModel):
                module.gradient_checkpointing = value

    def _run(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a layer, through gradient checkpointing where that is on."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *args, use_reentrant=False, **kwargs)
        return layer(*args, **kwargs)
