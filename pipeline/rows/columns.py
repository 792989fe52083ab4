"""The columns that travel between the stages, and the helpers that keep every block on one schema.

Each stage states as a `pyarrow.Schema` the columns that it needs and those that it adds; others travel on.
A manifest's other columns have the prefix `extra.`, so that no manifest can clash with a working column.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.errors import ERROR, error_record, is_fatal

Value = TypeVar("Value")

ID = pa.field("id", pa.string())
TEXT = pa.field("text", pa.string())
SOURCE = pa.field("source", pa.string())  # "manifest.csv, row 12": where the row came from
# Of what the row was made from, its text and the names of its clips: `Payload.digest`.
ROW_DIGEST = pa.field("row_digest", pa.uint64())
INPUT_IDS = pa.field("input_ids", pa.list_(pa.int32()))  # text tokens without any special token
# Names a voice by its content: a digest of its log-mels, or behind random- of its latents.
VOICE_KEY = pa.field("voice_key", pa.string())
SEED = pa.field("seed", pa.int64())  # that the candidates were sampled with
ENGINE = pa.field("engine", pa.string())  # JSON of what the tokens depend on beside settings and weights

TOKENS_PER_SECOND = 22_050 / 1024

# Measures of one candidate (`pipeline.rows.token_measures`), in this order.
QUALITY_FIELDS = (
    pa.field("longest_run", pa.int32()),  # tokens, of the longest run of one token
    pa.field("repeated_ngrams", pa.float32()),  # share of 4-grams that occurred before in the candidate
    pa.field("seconds_per_character", pa.float32()),  # of the text, white space not counted
)

CANDIDATE_TYPE = pa.struct(
    [
        ("rank", pa.int16()),  # from 1, the best
        ("candidate", pa.int16()),  # index that it was sampled under
        ("score", pa.float32()),  # exp(logit_scale) times the cosine of text and speech embedding
        ("speech_ids", pa.list_(pa.uint16())),  # without start and stop token
        ("num_tokens", pa.int32()),
        ("finished", pa.bool_()),  # the stop token was drawn before the length limit
        ("duration_s", pa.float32()),
        *QUALITY_FIELDS,
    ]
)
CANDIDATES = pa.field("candidates", pa.list_(CANDIDATE_TYPE))

EXTRA_PREFIX = "extra."


def extra_fields(schema: pa.Schema) -> list[pa.Field]:
    """The pass-through columns of a block, still prefixed."""
    return [field for field in schema if field.name.startswith(EXTRA_PREFIX)]


def require_columns(table: pa.Table, expected: pa.Schema) -> None:
    """Raise TypeError unless `table` has every column of `expected` with its exact type."""
    for field in expected:
        index = table.schema.get_field_index(field.name)
        found = table.schema.field(index).type if index >= 0 else "no such column"
        if found != field.type:
            raise TypeError(f"stage input column {field.name!r}: expected {field.type}, found {found}")


def set_columns(table: pa.Table, columns: Mapping[pa.Field, pa.Array | list[Any]]) -> pa.Table:
    """The block with these columns, arrays or lists of Python values, in the place of those of the same name,
    or at its end.
    """
    for field, column in columns.items():
        if isinstance(column, list):
            column = pa.array(column, field.type)
        place = table.schema.get_field_index(field.name)
        if place >= 0:
            table = table.set_column(place, field, column)
        else:
            table = table.append_column(field, column)
    return table


def good_rows(table: pa.Table) -> list[int]:
    """Indices of the rows that no stage has rejected so far."""
    return np.flatnonzero(table["error"].is_null().to_numpy(zero_copy_only=False)).tolist()


def map_rows(
    table: pa.Table, stage: str, function: Callable[[int], Value]
) -> tuple[list[Value | None], pa.Table]:
    """What `function` makes of each good row, given its index, and the block with the errors of rows that it
    raised an exception for. None where a row is bad.

    Raises what means that the process cannot go on.
    """
    values: list[Value | None] = [None] * len(table)
    errors = table["error"].to_pylist()
    for i in good_rows(table):
        try:
            values[i] = function(i)
        except Exception as error:  # whatever a row may cause must stay with the row
            if is_fatal(error):
                raise
            errors[i] = error_record(stage, error)
    return values, set_columns(table, {ERROR: errors})


def first_occurrences(ids: pa.ChunkedArray) -> np.ndarray:
    """bool [n]: whether a value is not null and occurs here for the first time."""
    # By their hashes, in 8 bytes each: a dictionary of ten million ids takes a gigabyte.
    hashed = [np.fromiter(map(hash, chunk.to_pylist()), np.int64, len(chunk)) for chunk in ids.chunks]
    _, places, inverse = np.unique(
        np.concatenate([np.zeros(0, np.int64), *hashed]), return_index=True, return_inverse=True
    )
    first = np.zeros(len(ids), bool)
    first[places] = True
    others: set[str] = set()  # ids whose hash is that of another one
    for i in np.flatnonzero(~first).tolist():
        value = ids[i].as_py()
        if value != ids[int(places[inverse[i]])].as_py() and value not in others:
            first[i] = True
            others.add(value)
    return first & ids.is_valid().to_numpy()


def offsets_of(lengths: Sequence[int]) -> pa.Array:
    """List offsets [n + 1] int32 for lists of these lengths."""
    return pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32))


def struct_lists(
    rows: Sequence[Sequence[Any] | None], fields: Sequence[pa.Array], dtype: pa.StructType
) -> pa.ListArray:
    """Lists [n] as long as these, null for None, of structs from their fields, one row after the other."""
    mask = pa.array([row is None for row in rows], pa.bool_())
    values = pa.StructArray.from_arrays(fields, fields=list(dtype))
    return pa.ListArray.from_arrays(offsets_of([len(row or ()) for row in rows]), values, mask=mask)


def token_lists(tokens: Iterable[np.ndarray]) -> pa.ListArray:
    """list<uint16> from integer arrays, without a Python object for every token."""
    arrays = [np.asarray(t) for t in tokens]
    flat = np.concatenate(arrays) if arrays else np.zeros(0)
    return pa.ListArray.from_arrays(offsets_of([len(t) for t in arrays]), pa.array(flat.astype(np.uint16)))
