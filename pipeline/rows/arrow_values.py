"""Values of Arrow columns as Python sees them; one that cannot be had is a `RowError` in its place."""

from typing import Any

import pyarrow as pa
import pyarrow.types as pat

from pipeline.errors import RowError


def is_text_type(dtype: pa.DataType) -> bool:
    if pat.is_dictionary(dtype):
        return is_text_type(dtype.value_type)
    return pat.is_string(dtype) or pat.is_large_string(dtype) or pat.is_string_view(dtype)


def is_list_type(dtype: pa.DataType) -> bool:
    return pat.is_list(dtype) or pat.is_large_list(dtype) or pat.is_fixed_size_list(dtype)


def values(column: pa.Array, name: str) -> list[Any]:
    """Python values [n]; a RowError where text is no UTF-8 or a struct has two fields of one name."""
    try:
        return column.to_pylist()
    except ValueError:
        return [_value(column[i], name) for i in range(len(column))]


def _value(scalar: pa.Scalar, name: str) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return RowError("InvalidUtf8", f"{name} is not valid UTF-8")
    except ValueError as error:
        return RowError("InvalidValue", f"{name}: {error}")


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
