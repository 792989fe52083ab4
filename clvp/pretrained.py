"""What every CLVP model shares: loading, saving, gradient checkpointing."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, Self, TypeVar, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from clvp.checkpoint import CheckpointSource, write_json
from clvp.config import CONFIG_FILE, ClvpConfigBase
from clvp.weights import load_weights, save_weights, shapes_alone

Dtype = torch.dtype | str | None
P = ParamSpec("P")
R = TypeVar("R")


def parse_dtype(dtype: Dtype) -> torch.dtype | None:
    """A floating-point dtype from its name; None and "auto" stand for the checkpoint's own."""
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be a floating-point torch dtype or its name, not {dtype!r}")
    return found


def inference(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a function compute without gradients, and the models among its arguments without dropout.

    Every part of a model has its mode back afterwards.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        models = [value for value in (*args, *kwargs.values()) if isinstance(value, nn.Module)]
        training = [part for model in models for part in model.modules() if part.training]
        try:
            for part in training:
                part.training = False
            with torch.no_grad():
                return function(*args, **kwargs)
        finally:
            for part in training:
                part.training = True

    return call


def one_device(device_map: Any) -> torch.device | None:
    """The device that a `device_map` of `transformers` names; ValueError where it names several."""
    if isinstance(device_map, Mapping) and list(device_map) == [""]:
        device_map = device_map[""]
    if device_map == "auto":
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return None if device_map is None else torch.device(device_map)
    except (RuntimeError, TypeError):
        raise ValueError(
            f'device_map={device_map!r}: a model goes to one device as a whole, such as "cpu", "cuda:1" or '
            '"auto" (see docs/transformers.md)'
        ) from None


class ClvpPreTrainedModel(nn.Module):
    """Base of all public models."""

    config_class: ClassVar[type[ClvpConfigBase]]
    checkpoint_prefixes: ClassVar[tuple[str, ...]] = ()  # where the checkpoint of a whole holds this part
    input_embeddings: ClassVar[str]  # the module that embeds `input_ids`
    generation_config: Any = None  # of the models that generate: a ClvpGenerationConfig

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} needs a {self.config_class.__name__}, not a {type(config).__name__}"
            )
        self.config: Any = config
        self.gradient_checkpointing = False
        self.checkpointing_options: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            message = f"{error} (see docs/transformers.md for what there is of transformers' calls)"
            raise AttributeError(message) from None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: ClvpConfigBase | None = None,
        config_type: str | None = None,
        dtype: Dtype = None,
        torch_dtype: Dtype = None,
        device: torch.device | str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        low_cpu_mem_usage: bool | None = None,
        parts: Sequence[str] = ("",),
        mapped: bool = False,
        **hub: Any,
    ) -> Self:
        """Model in evaluation mode from a folder or hub id, a part's from the checkpoint of the whole too.

        `dtype` None keeps the stored one, `device` None means CPU; `torch_dtype` and `device_map` are names
        that `transformers` has for them. Attention is "sdpa", and "eager" where its weights are asked for,
        whichever of the two `attn_implementation` says; `low_cpu_mem_usage` is always so. `config_type`
        ("text_config" or "speech_config") tells which encoder a `ClvpEncoder` reads out of a composite
        checkpoint. Modules and weights outside `parts` get no memory: they stay on `meta`; `mapped` ones take
        none of their own where they are as stored, and change with the file. `hub` are options of
        `huggingface_hub`, such as `revision`.

        Raises CheckpointError naming weights that do not fit, FileNotFoundError for absent files.
        """
        source, unknown = CheckpointSource.parse(pretrained_model_name_or_path, hub)
        if unknown:
            names = ", ".join(unknown)
            raise TypeError(
                f"{cls.__name__}.from_pretrained knows no argument {names} (see docs/transformers.md)"
            )
        if attn_implementation not in (None, "sdpa", "eager"):
            raise ValueError(
                f'attn_implementation={attn_implementation!r} must be "sdpa" or "eager" (see '
                "docs/transformers.md)"
            )
        dtype = torch_dtype if dtype is None else dtype
        device = one_device(device_map) if device is None else device
        if config is None:
            config = cls.config_class.from_pretrained(pretrained_model_name_or_path, config_type, **hub)
        with shapes_alone():
            model = cls(config)
        prefixes = cls.checkpoint_prefixes
        if config_type is not None:  # of the two encoders, which share a class
            prefixes = (config_type.replace("_config", "_encoder_model."),)
        load_weights(
            model, source, prefixes, dtype=parse_dtype(dtype), device=device, parts=parts, mapped=mapped
        )
        if model.generation_config is not None:
            model.generation_config = model.generation_config.beside(source)
        return model.eval()

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, max_shard_size: int | str = "5GB"
    ) -> None:
        """Write configuration and weights into a folder that this package and `transformers` load."""
        folder = Path(save_directory)
        about = {"architectures": [type(self).__name__], "dtype": str(self.dtype).removeprefix("torch.")}
        content = self.config.to_dict() | about
        content.pop("torch_dtype", None)  # the older name of `dtype`, and that of other weights
        write_json(folder / CONFIG_FILE, content)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)
        save_weights(self, folder, max_shard_size)

    def get_input_embeddings(self) -> nn.Embedding:
        """What `input_ids` are embedded by."""
        return cast(nn.Embedding, self.get_submodule(self.input_embeddings))

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace what `input_ids` are embedded by."""
        self.set_submodule(self.input_embeddings, value)

    def get_output_embeddings(self) -> nn.Module | None:
        """What gives the logits over a vocabulary, of a model that has such."""
        return None

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

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Trade computation for memory in training: layers are computed again in the backward pass.

        `gradient_checkpointing_kwargs` are those of `torch.utils.checkpoint`; `use_reentrant` is False.
        """
        for module in self.modules():
            if isinstance(module, ClvpPreTrainedModel):
                module.gradient_checkpointing = True
                module.checkpointing_options = dict(gradient_checkpointing_kwargs or {})

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations for the backward pass again."""
        for module in self.modules():
            if isinstance(module, ClvpPreTrainedModel):
                module.gradient_checkpointing = False

    def _run(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a layer, through gradient checkpointing where that is on."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(
                layer, *args, **{"use_reentrant": False, **self.checkpointing_options}, **kwargs
            )
        return layer(*args, **kwargs)
