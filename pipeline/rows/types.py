"""Arrow types of a manifest's columns: inferred from Python values, merged over files, held by error rows."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat

from pipeline.errors import ManifestError, RowError, shown
from pipeline.rows.memory import MAX_FIELDS

MAX_CELLS = 1 << 20  # of nested columns whose type is found by building them

# What pa.array raises for a value that does not fit: a wrong kind, a number out of range, a lone surrogate.
_CONVERSION_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError)


class ColumnTypes:
    """Collects the one type of every pass-through column over all files of a manifest."""

    def __init__(self, known: pa.Schema) -> None:
        self.known: dict[str, pa.DataType] = {field.name: field.type for field in known}
        self._origin: dict[str, str] = dict.fromkeys(self.known, "")  # the file that named a column first

    def declare(self, name: str, dtype: pa.DataType, uri: str) -> None:
        """Merge a type that a file states.

        Raises ManifestError when it does not go with the files before, or Parquet cannot store it.
        """
        if dtype == self.known.get(name):
            return
        merged = _merge(self.known.get(name), dtype)
        problem = None
        if merged is None:
            problem = f"column {name!r} holds {dtype}; in the files before it held {self.known[name]}"
        elif num_fields(merged) > MAX_FIELDS:
            fields = f"the objects of column {name!r} have over {MAX_FIELDS:,} different fields"
            problem = f"{fields}; store them as text"
        else:
            try:
                pq.write_table(pa.schema([(name, merged)]).empty_table(), pa.BufferOutputStream())
            except pa.ArrowException as error:
                problem = f"column {name!r} cannot be written to Parquet: {error}"
        if problem is not None:
            raise ManifestError(f"manifest file {uri}: {problem}")
        self.known[name] = merged
        self._origin.setdefault(name, uri)

    def observe(self, name: str, values: Sequence[Any], uri: str) -> pa.DataType:
        """The column's type once those of these Python values are merged into it.

        A value that does not go with the ones before it in this file is left to `convert`, which makes it an
        error of its row. Raises ManifestError when another file's type for the column is a different one.
        """
        if name not in self.known:
            self.declare(name, pa.null(), uri)  # what no value decides: all are null, or unusable
        whole = infer(values)
        for kind in [whole] if whole is not None else map(infer, ([value] for value in values)):
            if kind is None:
                continue
            fits = _merge(self.known[name], kind) is not None
            if fits or (whole is not None and self._origin[name] != uri):
                self.declare(name, kind, uri)
        return self.known[name]

    def schema(self) -> pa.Schema:
        """All columns; those that no value decides are text, since readers of Parquet stumble over null."""
        return pa.schema([(name, _without_null(dtype)) for name, dtype in self.known.items()])


def convert(
    name: str, values: Sequence[Any] | pa.Array, dtype: pa.DataType
) -> tuple[pa.Array, dict[int, RowError]]:
    """Python values or a column of another type as an array of `dtype` [n], with null and a RowError for each
    value that does not fit, or holds text that is no UTF-8.
    """
    try:
        return _array(values, dtype), {}
    except _CONVERSION_ERRORS:
        pieces, problems = [], {}
        for i in range(len(values)):
            # A copy of each row: a slice of nested lists would be checked with all its neighbours.
            value = values.take(pa.array([i])) if isinstance(values, pa.Array) else values[i : i + 1]
            try:
                pieces.append(_array(value, dtype))
            except _CONVERSION_ERRORS as error:
                pieces.append(pa.nulls(1, dtype))
                problems[i] = _misfit(name, value[0], dtype, error)
        return pa.concat_arrays(pieces), problems


def _misfit(name: str, value: Any, dtype: pa.DataType, error: Exception) -> RowError:
    if isinstance(value, pa.Scalar):
        if "UTF8" in str(error):
            return RowError("InvalidUtf8", f"column {shown(name)} is not valid UTF-8")
        value = value.as_py()
    kind = "has no value that can be stored" if pat.is_null(dtype) else f"is {dtype} here"
    return RowError("WrongColumnType", f"column {name!r} {kind}; the row holds {shown(value)}")


def _array(values: Sequence[Any] | pa.Array, dtype: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        values.validate(full=True)
        return values if values.type == dtype else values.cast(dtype)
    if pat.is_null(dtype):
        values = [None if value == {} else value for value in values]  # an object without fields is nothing
    return pa.array(values, dtype)


def python_values(batch: pa.RecordBatch, name: str) -> list[Any]:
    """Python values [n] of a column, None where it is not there; a RowError where text is no UTF-8 or a
    struct has two fields of one name.
    """
    if name not in batch.schema.names:
        return [None] * len(batch)
    try:
        return batch.column(name).to_pylist()
    except ValueError:
        return [_python_value(scalar, name) for scalar in batch.column(name)]


def _python_value(scalar: pa.Scalar, name: str) -> Any:
    try:
        return scalar.as_py()
    except ValueError as error:
        kind = "InvalidUtf8" if isinstance(error, UnicodeDecodeError) else "InvalidValue"
        return RowError(kind, f"{name}: {error}")


def example(dtype: pa.DataType) -> Any:
    """A Python value of a type, as a check of values sees it; text is of a form that passes for anything."""
    if pat.is_dictionary(dtype):
        return example(dtype.value_type)
    if pat.is_struct(dtype):
        return {field.name: example(field.type) for field in dtype}
    if pat.is_fixed_size_list(dtype) or pat.is_list(dtype) or pat.is_large_list(dtype):
        return [example(dtype.value_type)]
    if pat.is_string(dtype) or pat.is_large_string(dtype) or pat.is_string_view(dtype):
        return "[0]"
    if pat.is_binary(dtype) or pat.is_large_binary(dtype) or pat.is_binary_view(dtype):
        return b"0"
    return None if pat.is_null(dtype) else 0 if pat.is_integer(dtype) else 0.5


def num_fields(dtype: pa.DataType) -> int:
    """Columns of plain values that a type consists of."""
    if pat.is_dictionary(dtype) or not dtype.num_fields:
        return 1
    return sum(num_fields(dtype.field(i).type) for i in range(dtype.num_fields))


def _without_null(dtype: pa.DataType) -> pa.DataType:
    if pat.is_struct(dtype):
        return pa.struct([field.with_type(_without_null(field.type)) for field in dtype])
    if pat.is_list(dtype):
        return pa.list_(dtype.value_field.with_type(_without_null(dtype.value_type)))
    return pa.string() if pat.is_null(dtype) else dtype


def _is_hollow(dtype: pa.DataType) -> bool:
    """Whether the type has objects without fields, which Parquet does not know."""
    if pat.is_struct(dtype) and not dtype.num_fields:
        return True
    return any(_is_hollow(dtype.field(i).type) for i in range(dtype.num_fields))


def infer(values: Sequence[Any]) -> pa.DataType | None:
    """The one type of JSON values, None if there is none or Parquet cannot store it."""
    try:
        dtype = pa.infer_type(values)
        # Objects of many different fields would make a table of all fields in all rows.
        if num_fields(dtype) * len(values) <= MAX_CELLS:
            dtype = pa.array(values).type
        return None if _is_hollow(dtype) else dtype
    except _CONVERSION_ERRORS:
        return None


def _merge(known: pa.DataType | None, other: pa.DataType) -> pa.DataType | None:
    """The common type, None if there is none."""
    if known is None or known == other:
        return other
    schemas = [pa.schema([("x", known)]), pa.schema([("x", other)])]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None
