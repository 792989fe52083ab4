"""Rows of a batch on their way into a model: padding, tensors, and the dictionary that holds them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

Padding = bool | Literal["longest", "max_length", "do_not_pad"] | None
Side = Literal["left", "right"]
TensorType = Literal["pt", "np"]
Device = str | int | torch.device

PADDINGS = (True, False, None, "longest", "max_length", "do_not_pad")


class BatchFeature(dict[str, Any]):
    """A dictionary of model inputs whose entries are attributes too: `out["input_ids"]` is `out.input_ids`.

    It unpacks into a model call (`model.generate(**out)`), pickles, and moves to a device with `to`.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no entry {name!r}; there are {', '.join(self) or 'none'}") from None

    @property
    def data(self) -> dict[str, Any]:
        """The entries as a plain dictionary."""
        return dict(self)

    def to(
        self,
        *args: Device | torch.dtype,
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> "BatchFeature":
        """Move all tensors to `device` and cast floating-point ones to `dtype`, in place; returns itself.

        Both may be given by position, in any order: `out.to("cuda", torch.float16)`. Token ids and masks keep
        their integer types.

        Raises:
            TypeError: an argument is neither a device nor a dtype, or one of them is given twice.
        """
        for arg in args:
            if isinstance(arg, torch.dtype) and dtype is None:
                dtype = arg
            elif isinstance(arg, Device) and device is None:
                device = arg
            else:
                raise TypeError(f"to() takes one device and one dtype, got {arg!r} as well")

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, dtype if value.is_floating_point() else None, non_blocking)
            if isinstance(value, list | tuple):
                return type(value)(map(moved, value))
            if isinstance(value, Mapping):
                return {name: moved(item) for name, item in value.items()}
            return value

        self.update({name: moved(value) for name, value in self.items()})
        return self


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ValueError naming an argument that is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")


def round_up(length: int, multiple: int | None) -> int:
    """The next multiple; `length` itself where there is none."""
    return -(-length // multiple) * multiple if multiple else length


def stack(rows: Sequence[Any], dtype: Any = None) -> np.ndarray:
    """One array of rows of one shape; ValueError where they differ in length."""
    lengths = {np.shape(row)[-1] for row in rows}
    if len(lengths) > 1:
        raise ValueError(
            f"lengths of {min(lengths)} to {max(lengths)} do not fit into one tensor: pad them (padding=True)"
        )
    return np.array(rows, dtype).reshape(len(rows), *(np.shape(rows[0]) if rows else (0,)))


def to_tensor(array: np.ndarray, tensor_type: TensorType) -> Any:
    """The array itself, or a tensor in its memory; ValueError for another type."""
    check_choice("return_tensors", tensor_type, get_args(TensorType))
    return torch.from_numpy(array) if tensor_type == "pt" else array


def without_padding(rows: Tensor | Sequence[Tensor], attention_mask: Tensor | None) -> list[Tensor]:
    """The tokens or embeddings of each row that `attention_mask` [B, L] shows, wherever its padding lies."""
    if attention_mask is None:
        return list(rows)
    if isinstance(rows, Tensor) and attention_mask.shape != rows.shape[:2]:
        raise ValueError(
            f"attention_mask must have the shape of the tokens, {list(rows.shape[:2])}, "
            f"not {list(attention_mask.shape)}"
        )
    return [row[keep.to(row.device).bool()] for row, keep in zip(rows, attention_mask, strict=True)]
