"""Activation functions by the names that `config.json` uses."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The function called `name`; ValueError naming the known ones for any other."""
    try:
        return _ACTIVATIONS[name]
    except KeyError:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(_ACTIVATIONS)}") from None
