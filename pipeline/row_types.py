"""Types of the pass-through columns: stated by Parquet files, text in CSV, and inferred from JSON values."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ManifestError, RowError

MAX_COLUMNS = 1000

# What pa.array raises for a value that does not fit: a wrong kind, a number out of range, a lone surrogate.
_CONVERSION_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError)


class ColumnTypes:
    """Collects the one type of every pass-through column over all files of a manifest."""

    def __init__(self, known: pa.Schema | None = None) -> None:
        self._types: dict[str, pa.DataType] = {field.name: field.type for field in known or ()}
        self._origin: dict[str, str] = dict.fromkeys(self._types, "")  # the file that named a column first

    def declare(self, name: str, dtype: pa.DataType, uri: str) -> None:
        """Merge a type that a file states.

        Raises ManifestError when it does not go with the files before, or Parquet cannot store it.
        """
        merged = _merge(self._types.get(name), dtype)
        if merged is None:
            raise ManifestError(
                f"manifest file {uri}: column {name!r} holds {dtype}; "
                f"in the files before it held {self._types[name]}"
            )
        try:
            pq.write_table(pa.schema([(name, merged)]).empty_table(), pa.BufferOutputStream())
        except pa.ArrowException as error:
            raise ManifestError(
                f"manifest file {uri}: column {name!r} cannot be written to Parquet: {error}"
            ) from error
        self._types[name] = merged
        self._origin.setdefault(name, uri)
        if len(self._types) > MAX_COLUMNS:
            raise ManifestError(
                f"manifest file {uri}: over {MAX_COLUMNS:,} different columns; is every line a row?"
            )

    def observe(self, name: str, values: Sequence[Any], uri: str) -> None:
        """Merge the types of JSON values.

        A value that does not go with the ones before it in this file is left to `convert`, which makes it an
        error of its row. Raises ManifestError when another file's type for the column is a different one.
        """
        whole = _infer(values)
        kinds = [whole] if whole is not None else [_infer([value]) for value in values]
        for kind in kinds:
            if kind is None:
                continue
            fits = _merge(self._types.get(name), kind) is not None
            if fits or (whole is not None and self._origin[name] != uri):
                self.declare(name, kind, uri)

    def schema(self) -> pa.Schema:
        return pa.schema(list(self._types.items()))


def convert(name: str, values: Sequence[Any], dtype: pa.DataType) -> tuple[pa.Array, dict[int, RowError]]:
    """An array of `dtype` [n] from Python values, with null and a RowError for each that does not fit."""
    try:
        return pa.array(values, type=dtype), {}
    except _CONVERSION_ERRORS:
        problems = {i: error for i, value in enumerate(values) if (error := _misfit(name, value, dtype))}
        return pa.array([None if i in problems else v for i, v in enumerate(values)], type=dtype), problems


def _misfit(name: str, value: Any, dtype: pa.DataType) -> RowError | None:
    try:
        pa.array([value], type=dtype)
    except _CONVERSION_ERRORS:
        return RowError(
            "WrongColumnType", f"column {name!r} is {dtype} in this manifest, the row holds {value!r:.80}"
        )
    return None


def _infer(values: Sequence[Any]) -> pa.DataType | None:
    try:
        return pa.array(values).type
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
