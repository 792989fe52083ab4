"""Values of Arrow columns as Python sees them, converted only where they are of a size that can be used.

What is too large or no valid Unicode is a `RowError` in its place.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipeline.errors import RowError


def is_text_type(dtype: pa.DataType) -> bool:
    if pat.is_dictionary(dtype):
        return is_text_type(dtype.value_type)
    return pat.is_string(dtype) or pat.is_large_string(dtype) or pat.is_string_view(dtype)


def is_list_type(dtype: pa.DataType) -> bool:
    return pat.is_list(dtype) or pat.is_large_list(dtype) or pat.is_fixed_size_list(dtype)


def texts(column: pa.Array, name: str, max_chars: int, kind: str) -> list[str | RowError | None]:
    """The strings [n] of a column of text type; a longer one is a RowError of `kind` with its length."""
    if pat.is_null(column.type):
        return [None] * len(column)
    if pat.is_dictionary(column.type):
        values = texts(column.dictionary, name, max_chars, kind)
        return [None if index is None else values[index] for index in column.indices.to_pylist()]
    if pat.is_string_view(column.type):
        column = column.cast(pa.large_string())
    if (pc.max(pc.binary_length(column)).as_py() or 0) <= max_chars:  # bytes, so characters too
        try:
            return column.to_pylist()
        except UnicodeDecodeError:
            pass
    return [_text(column, i, name, max_chars, kind) for i in range(len(column))]


def _text(column: pa.Array, index: int, name: str, max_chars: int, kind: str) -> str | RowError | None:
    value = column[index]
    if not value.is_valid:
        return None
    # `utf8_length` counts what does not continue a character, so it never fails.
    length = pc.utf8_length(column.slice(index, 1))[0].as_py()
    if length > max_chars or pc.binary_length(value).as_py() > 4 * max_chars:
        return RowError(kind, f"{name} has {length:,} characters; at most {max_chars:,}")
    try:
        return str(value.as_py())
    except UnicodeDecodeError:
        return RowError("InvalidUtf8", f"{name} is not valid UTF-8")


def values(column: pa.Array, name: str, max_bytes: int, fields: Sequence[str] = ()) -> list[Any]:
    """Python values [n] of any column; of structs only the `fields`.

    A value of more bytes (in Arrow, without what is left out) is a RowError "ValueTooLarge".
    """
    column = _with_fields(column, fields)
    if _weight(column) <= max_bytes:
        try:
            return column.to_pylist()
        except UnicodeDecodeError:
            pass
    return [_value(column.slice(i, 1), name, max_bytes) for i in range(len(column))]


def _value(single: pa.Array, name: str, max_bytes: int) -> Any:
    if (size := _weight(single)) > max_bytes:
        return RowError("ValueTooLarge", f"{name} has {size:,} bytes; at most {max_bytes:,}")
    try:
        return single[0].as_py()
    except UnicodeDecodeError:
        return RowError("InvalidUtf8", f"{name} is not valid UTF-8")


def _weight(column: pa.Array) -> int:
    """Bytes, and one for every null of a column that has no other values and thus no bytes."""
    if pat.is_null(column.type):
        return len(column)
    if is_list_type(column.type):
        return 8 * len(column) + _weight(column.flatten())
    if pat.is_struct(column.type):
        return len(column) + sum(map(_weight, column.flatten()))
    return int(column.nbytes)


def row_bytes(column: pa.Array) -> list[int]:
    """Bytes of each value [n]."""
    return [_weight(column.slice(i, 1)) for i in range(len(column))]


def list_lengths(column: pa.Array) -> list[int | None]:
    """The lengths [n] of a column of lists; 1 where values are no lists."""
    if is_list_type(column.type):
        return pc.list_value_length(column).to_pylist()
    return [1 if valid else None for valid in column.is_valid().to_pylist()]


def invalid_text_rows(column: pa.Array) -> list[int]:
    """Rows whose value holds a string, however deep, that is not valid UTF-8."""
    if _is_valid(column):
        return []
    # A copy of each row: a slice of nested lists would be checked with all its neighbours.
    return [i for i in range(len(column)) if not _is_valid(column.take(pa.array([i])))]


def _is_valid(column: pa.Array) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def with_nulls(column: pa.Array, rows: Sequence[int]) -> pa.Array:
    """The column with null at these rows."""
    if not rows:
        return column
    hidden = set(rows)
    return column.take(pa.array([None if i in hidden else i for i in range(len(column))], pa.int64()))


def _with_fields(column: pa.Array, fields: Sequence[str]) -> pa.Array:
    """The column with only these fields of its structs, at the top or within lists."""
    if not fields:
        return column
    if is_list_type(column.type):
        inner = _with_fields(column.flatten(), fields)
        lengths = pc.list_value_length(column).fill_null(0)
        offsets = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths.cast(pa.int64()))])
        return pa.LargeListArray.from_arrays(offsets, inner, mask=column.is_null())
    if pat.is_struct(column.type):
        present = [name for name in fields if column.type.get_field_index(name) >= 0]
        children = [column.field(name) for name in present]
        return pa.StructArray.from_arrays(children, present, mask=column.is_null())
    return column
