"""Texts, token ids and lengths of a batch as callers hand them over, with the arguments of `transformers`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from clvp.batch import PADDINGS, Padding, Side, check_choice, round_up

Truncation = bool | Literal["longest_first", "only_first", "do_not_truncate"] | None

_TRUNCATIONS = (True, False, None, "longest_first", "only_first", "do_not_truncate")
# Files of tokenizers without a limit hold 1e30 for their length.
_UNLIMITED = 10**20


def list_of_texts(text: str | Sequence[str]) -> list[str]:
    """The texts of a batch; TypeError naming what is none."""
    texts = [text] if isinstance(text, str) else text
    if isinstance(texts, bytes | Mapping) or not hasattr(texts, "__iter__"):
        raise TypeError(f"text must be a string or a sequence of strings, got {type(text).__name__}")
    texts = list(texts)
    for index, entry in enumerate(texts):
        if not isinstance(entry, str):
            raise TypeError(f"text {index} is no string but {type(entry).__name__}: {str(entry)[:40]!r}")
    return texts


def read_lengths(
    padding: Padding,
    truncation: Truncation,
    max_length: int | None,
    model_max_length: int,
    multiple: int | None,
) -> tuple[int | None, int | None]:
    """Where rows are cut, and to what length at least they are padded; None where they are not.

    A `max_length` alone truncates; without one, the model's own limit stands in where a limit is needed.

    Raises:
        ValueError: an unknown strategy, a limit that is not positive, or a truncation length that the padding
            could not keep.
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
