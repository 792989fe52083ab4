"""Rows of a batch on their way into a model: lengths, padding, tensors, and the dictionary of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

Padding = bool | Literal["longest", "max_length", "do_not_pad"] | None
Side = Literal["left", "right"]
TensorType = Literal["pt", "np"]
Device = str | int | torch.device
Truncation = bool | Literal["longest_first", "only_first", "do_not_truncate"] | None

PADDINGS = (True, False, None, "longest", "max_length", "do_not_pad")
_TRUNCATIONS = (True, False, None, "longest_first", "only_first", "do_not_truncate")
# Files of tokenizers without a limit hold 1e30 for their length.
_UNLIMITED = 10**20


class BatchFeature(dict[str, Any]):
    """A dictionary of model inputs whose entries are attributes too: `out["input_ids"]` is `out.input_ids`.

    It unpacks into a model call (`model.generate(**out)`), pickles, and moves to a device with `to`.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no entry {name!r}; there are {', '.join(self) or 'none'}") from None

    def to(
        self,
        device: Device | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> "BatchFeature":
        """Move all tensors to `device` and cast floating-point ones to `dtype`, in place; returns itself.

        A dtype may stand alone: `out.to(torch.float16)`. Token ids and masks keep their integer types.
        """
        target, cast = (None, device) if isinstance(device, torch.dtype) else (device, dtype)

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(target, cast if value.is_floating_point() else None, non_blocking)
            return [moved(item) for item in value] if isinstance(value, list) else value

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
    lengths = {np.shape(row)[-1] for row in rows if np.ndim(row)}
    if len(lengths) > 1:
        raise ValueError(
            f"lengths of {min(lengths)} to {max(lengths)} do not fit into one tensor: pad them (padding=True)"
        )
    return np.array(rows, dtype).reshape(len(rows), *(np.shape(rows[0]) if rows else (0,)))


def list_of_texts(text: str | Sequence[str]) -> list[str]:
    """The texts of a batch; TypeError naming what is none."""
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, Sequence):
        raise TypeError(f"text must be a string or a sequence of strings, got {type(text).__name__}")
    for index, entry in enumerate(texts):
        if not isinstance(entry, str):
            raise TypeError(f"text {index} is no string but {type(entry).__name__}: {str(entry)[:40]!r}")
    return list(texts)


def read_lengths(
    padding: Padding,
    truncation: Truncation,
    max_length: int | None,
    model_max_length: int,
    multiple: int | None,
) -> tuple[int | None, int | None]:
    """Where rows are cut, and to what length at least they are padded; None where they are not.

    A `max_length` alone truncates; without one, the model's own limit stands in where a limit is needed.
    Raises ValueError for an unknown strategy, a limit that is not positive, or a truncation length that the
    padding could not keep.
    """
    check_choice("padding", padding, PADDINGS)
    check_choice("truncation", truncation, _TRUNCATIONS)
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be positive, got {max_length}")
    limit = max_length if max_length is not None or model_max_length >= _UNLIMITED else model_max_length
    cut_to = None if truncation in (False, None, "do_not_truncate") else limit
    if truncation is None and padding in (False, None, "do_not_pad"):
        cut_to = max_length
    pad_to = limit if padding == "max_length" else 0 if padding in (True, "longest") else None
    if cut_to is not None and pad_to is not None and multiple and cut_to % multiple:
        raise ValueError(f"cannot truncate to {cut_to} and pad to a multiple of {multiple} at the same time")
    return cut_to, pad_to


def pad_rows(
    rows: list[list[int]], fill: int, length: int, multiple: int | None, side: Side
) -> list[list[int]]:
    """Rows of one length: `length`, or that of the longest, rounded up to a multiple."""
    length = round_up(max([length, *map(len, rows)]), multiple)
    gaps = [[fill] * (length - len(row)) for row in rows]
    return [gap + row if side == "left" else row + gap for row, gap in zip(rows, gaps, strict=True)]


def to_python(value: Any) -> Any:
    """Tensors, arrays and numpy scalars, also inside lists, to Python integers and lists of them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [to_python(item) for item in value] if isinstance(value, list | tuple) else value


def columns_of(rows: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries of a batch by name, which may come as one mapping per row; ValueError for no row."""
    if isinstance(rows, Mapping):
        return dict(rows)
    if not len(rows):
        raise ValueError("there is no row to pad")
    return {name: [row[name] for row in rows] for name in rows[0]}


def type_of(value: Any) -> TensorType | None:
    """The type of tensor that a value or, in a list, its first element is; None for Python's own."""
    first = value[0] if isinstance(value, list | tuple) and value else value
    return "pt" if isinstance(first, Tensor) else "np" if isinstance(first, np.ndarray) else None


def to_tensor(array: np.ndarray, tensor_type: TensorType) -> Any:
    """The array itself, or a tensor in its memory; ValueError for another type."""
    check_choice("return_tensors", tensor_type, get_args(TensorType))
    return torch.from_numpy(array) if tensor_type == "pt" else array


def check_mask(attention_mask: Tensor, rows: Tensor, past: int = 0) -> None:
    """Raise ValueError unless the mask has the shape [B, past + L], for rows [B, L, ...]."""
    expected = [rows.shape[0], past + rows.shape[1]]
    if list(attention_mask.shape) != expected:
        raise ValueError(
            f"attention_mask must have the shape of all tokens, {expected}, not {list(attention_mask.shape)}"
        )


def count_positions(attention_mask: Tensor | None, rows: Tensor, past: int = 0) -> Tensor:
    """[B or 1, L] index of each token of rows [B, L, ...] in its row, which begins with `past` others."""
    length = rows.shape[1]
    if attention_mask is None:
        return torch.arange(past, past + length, device=rows.device)[None]
    check_mask(attention_mask, rows, past)
    return (attention_mask.to(rows.device).long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]


def without_padding(rows: Tensor | Sequence[Tensor], attention_mask: Tensor | None) -> list[Tensor]:
    """The tokens or embeddings of each row that `attention_mask` [B, L] shows, wherever its padding lies."""
    if attention_mask is None:
        return list(rows)
    if isinstance(rows, Tensor):
        check_mask(attention_mask, rows)
    return [row[keep.to(row.device).bool()] for row, keep in zip(rows, attention_mask, strict=True)]
