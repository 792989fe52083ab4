"""Token id lists of different lengths to one rectangular batch: truncation, padding, tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from clvp.batch import BatchFeature

Padding = bool | Literal["longest", "max_length", "do_not_pad"]
Truncation = bool | Literal["longest_first", "only_first", "do_not_truncate"] | None
Side = Literal["left", "right"]
TensorType = Literal["pt", "np"]

# Files of tokenizers without a limit hold 1e30 for their length.
UNLIMITED = 10**20


@dataclass(frozen=True)
class LengthPlan:
    """How long the sequences of a batch may and must be; None means as long as they are."""

    truncate_to: int | None = None
    pad: Literal["no", "longest", "max_length"] = "no"
    pad_to: int | None = None  # with pad="max_length"
    multiple_of: int | None = None

    def padded_length(self, lengths: Sequence[int]) -> int | None:
        """The common length of a batch, or None when it is not padded."""
        if self.pad == "no":
            return None
        length = max(lengths, default=0)
        if self.pad == "max_length" and self.pad_to is not None:
            length = max(length, self.pad_to)
        if self.multiple_of:
            length = -(-length // self.multiple_of) * self.multiple_of
        return length


def plan_lengths(
    padding: Padding,
    truncation: Truncation,
    max_length: int | None,
    model_max_length: int,
    pad_to_multiple_of: int | None,
) -> LengthPlan:
    """Read the padding and truncation arguments as `transformers` does.

    A `max_length` alone truncates; without one, the model's own limit stands in where a limit is needed.

    Raises:
        ValueError: an unknown strategy, a limit that is not positive, or a truncation length that the padding
            could not keep.
    """
    if padding not in (True, False, "longest", "max_length", "do_not_pad"):
        raise ValueError(
            f"padding={padding!r}: expected True, False, 'longest', 'max_length' or 'do_not_pad'"
        )
    if truncation not in (True, False, None, "longest_first", "only_first", "do_not_truncate"):
        raise ValueError(f"truncation={truncation!r}: expected True, False, 'longest_first' or 'only_first'")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be positive, got {max_length}")
    truncates = truncation not in (None, False, "do_not_truncate")
    if truncation is None and padding in (False, "do_not_pad") and max_length is not None:
        truncates = True
    limit = max_length
    if limit is None and model_max_length < UNLIMITED:
        limit = model_max_length
    pad: Literal["no", "longest", "max_length"] = "no"
    if padding == "max_length":
        pad = "max_length" if limit is not None else "no"
    elif padding in (True, "longest"):
        pad = "longest"
    if truncates and pad != "no" and limit is not None and pad_to_multiple_of and limit % pad_to_multiple_of:
        raise ValueError(
            f"cannot truncate to {limit} and pad to a multiple of {pad_to_multiple_of} at the same time"
        )
    return LengthPlan(
        truncate_to=limit if truncates else None,
        pad=pad,
        pad_to=limit if pad == "max_length" else None,
        multiple_of=pad_to_multiple_of,
    )


def assemble_batch(
    columns: Mapping[str, list[list[int]]],
    *,
    fill: Mapping[str, int],
    plan: LengthPlan,
    side: Side,
    tensor_type: TensorType | None,
    single: bool,
) -> BatchFeature:
    """Pad the rows of every column with its `fill`; tensors, or lists (the list itself for a single row).

    Raises:
        ValueError: rows of several lengths are to become a tensor, or `side` or `tensor_type` is unknown.
    """
    if side not in ("left", "right"):
        raise ValueError(f"padding_side={side!r}: expected 'left' or 'right'")
    batch = BatchFeature()
    for name, rows in columns.items():
        length = plan.padded_length([len(row) for row in rows]) or 0
        missing = [[fill[name]] * (length - len(row)) for row in rows]
        padded = [gap + row if side == "left" else row + gap for row, gap in zip(rows, missing, strict=True)]
        if tensor_type is not None:
            batch[name] = _to_tensor(padded, tensor_type)
        else:
            batch[name] = padded[0] if single else padded
    return batch


def _to_tensor(rows: list[list[int]], tensor_type: TensorType) -> Any:
    """[B, N] int64 tensor (torch or numpy) of rows of one length.

    Raises:
        ValueError: the rows differ in length, or `tensor_type` is unknown.
    """
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise ValueError(
            f"texts of {min(lengths)} to {max(lengths)} tokens do not fit into one tensor: pass padding=True"
        )
    array = np.array(rows, dtype=np.int64).reshape(len(rows), max(lengths, default=0))
    if tensor_type == "np":
        return array
    if tensor_type == "pt":
        return torch.from_numpy(array)
    raise ValueError(f"return_tensors={tensor_type!r}: expected 'pt', 'np' or None")


def to_python(value: Any) -> Any:
    """Tensors, arrays and numpy scalars, also inside lists, to Python integers and lists of them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [to_python(item) for item in value]
    return value
