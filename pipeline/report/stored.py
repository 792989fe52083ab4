"""Reads what a run has stored, a batch at a time and only the columns that are needed, without Ray or torch.

Rows that are finished but not yet published into `data` and `errors` are read too, each row once: a report of
a run that goes on, or was killed, misses nothing that the run itself would count as done.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.description import NAME, load
from pipeline.errors import RunError
from pipeline.output.folder import OutputFolder
from pipeline.rows.columns import ID, TEXT
from pipeline.rows.token_measures import longest_runs, repeated_ngram_shares

MANIFEST_STAGE = "manifest"  # of rows that were rejected because they have no id of their own
BATCH_ROWS = 1024

# Fields of the candidate struct that every run stores.
_REQUIRED = ("rank", "candidate", "score", "num_tokens", "finished", "duration_s")
_MEASURES = ("longest_run", "repeated_ngrams")  # computed from `speech_ids` where a run has not stored them


@dataclass(frozen=True)
class Rows:
    """Finished rows with their candidates; arrays over candidates hold them row by row [k]."""

    ids: list[str]
    texts: list[str]
    stored: np.ndarray  # int64 [n], candidates of each row
    rank: np.ndarray
    candidate: np.ndarray
    score: np.ndarray
    num_tokens: np.ndarray
    finished: np.ndarray  # bool
    duration_s: np.ndarray
    longest_run: np.ndarray
    repeated_ngrams: np.ndarray
    unpublished: bool  # still in a block's own file

    @property
    def owners(self) -> np.ndarray:
        """int64 [k]: the row of each candidate."""
        return np.repeat(np.arange(len(self.ids)), self.stored)


@dataclass(frozen=True)
class Failures:
    """Rows that failed; lists are [n]."""

    ids: list[str | None]
    sources: list[str | None]
    stages: list[str]
    types: list[str]
    messages: list[str]


class StoredOutput:
    """The output folder of a run, on a local disk or an object store.

    Reads `data` and `errors` as they were listed when iteration began. Raises RunError when the folder holds
    no run or a file in it cannot be read.
    """

    def __init__(self, output: str) -> None:
        self.uri = storage.absolute(output)
        folders = ("data", "errors", "_parts")
        written = any(storage.list_names(self._folder(name), ".parquet") for name in folders)
        if not written and not storage.exists(storage.join(self.uri, NAME)):
            raise RunError(f"{self.uri} holds no run: no {NAME}, data or errors are in it")

    def description(self) -> Any:
        """What `run.json` holds; None where there is none or it is no JSON."""
        uri = storage.join(self.uri, NAME)
        if not storage.exists(uri):
            return None
        try:
            return json.loads(storage.read_bytes(uri))
        except (ValueError, RecursionError):
            return None

    def settings(self) -> Mapping[str, Any]:
        """Those that the run was told; none where there is no `run.json` that this version reads."""
        try:
            description = load(OutputFolder(self.uri))
        except RunError:
            return {}
        return {} if description is None else description.settings

    def read(self) -> Iterator[Rows | Failures]:
        """Everything once: published files first, then the rest of the blocks that are not published yet."""
        # Listed before the published files: what is published meanwhile is then seen twice, not missed, and
        # the second time is recognised by its id.
        parts = self._files("_parts")
        waiting = {name for file in parts for name in self._ids(file)}
        for file in self.data_files():
            for rows in self.rows_of(file):
                waiting.difference_update(rows.ids)
                yield rows
        for file in self._files("errors"):
            for batch in self._batches(file, required=True):
                failures = _failures(batch, file)
                # A row that the manifest repeats is in the error table under the id of the row that counts.
                own = [i for i, stage in enumerate(failures.stages) if stage != MANIFEST_STAGE]
                waiting.difference_update(failures.ids[i] for i in own)
                yield failures
        for file in parts:
            for batch in self._batches(file, required=False):
                yield from _part(batch, file, waiting)

    def data_files(self) -> list[str]:
        """The files of published rows."""
        return self._files("data")

    def rows_of(self, file: str) -> Iterator[Rows]:
        """The rows of one data file."""
        for batch in self._batches(file, required=True):
            yield _rows(batch, file, unpublished=False)

    def _folder(self, name: str) -> str:
        return storage.join(self.uri, name)

    def _files(self, folder: str) -> list[str]:
        names = storage.list_names(self._folder(folder), ".parquet")
        return [storage.join(self._folder(folder), name) for name in names]

    def _ids(self, file: str) -> Iterator[str]:
        for batch in self._batches(file, required=False, names=["id"]):
            yield from _column(batch, "id", file)

    def _batches(
        self, file: str, required: bool, names: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Record batches of a file; none when it is gone and not `required`: its rows were published."""
        source, path = storage.resolve(file)
        try:
            with source.open_input_file(path) as stream:
                parquet = pq.ParquetFile(stream)
                yield from parquet.iter_batches(BATCH_ROWS, columns=names or _wanted_columns(parquet))
        except FileNotFoundError as error:
            if required:
                raise RunError(f"{file} disappeared while it was read; try again") from error
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{file} cannot be read: {error}") from error


def _wanted_columns(parquet: pq.ParquetFile) -> list[str]:
    """Names of the leaves that are needed: all but the speech tokens where their measures are stored."""
    leaves = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
    fields = {_field_of(path) for path in leaves}
    wanted = {*_REQUIRED, *(_MEASURES if fields.issuperset(_MEASURES) else ("speech_ids",))}
    plain = {"id", "text", "source", "stage", "type", "message"}
    return [
        path for path in leaves if path in plain or path.startswith("error.") or _field_of(path) in wanted
    ]


def _field_of(path: str) -> str | None:
    """`candidates.list.element.score` -> `score`."""
    parts = path.split(".")
    return parts[3] if parts[0] == "candidates" and len(parts) > 3 else None


def _part(batch: pa.RecordBatch, file: str, waiting: set[str]) -> Iterator[Rows | Failures]:
    """Rows and errors of a block's own file whose ids have not been seen; takes them out of `waiting`."""
    fresh = []
    for name in _column(batch, "id", file):
        fresh.append(name in waiting)
        waiting.discard(name)
    table = pa.Table.from_batches([batch]).filter(pa.array(fresh, pa.bool_()))
    if "error" not in table.column_names:
        raise RunError(f"{file} has no column 'error'; was it written by a run?")
    failed = pc.is_valid(table["error"])
    bad, good = table.filter(failed), table.filter(pc.invert(failed))
    if len(bad):
        flat = bad.select(["id", "source"])
        for name in ("stage", "type", "message"):
            flat = flat.append_column(name, pc.struct_field(bad["error"], name))
        yield _failures(flat.combine_chunks().to_batches()[0], file)
    if len(good):
        yield _rows(good.combine_chunks().to_batches()[0], file, True)


def _column(batch: pa.RecordBatch, name: str, file: str) -> list[Any]:
    if name not in batch.schema.names:
        raise RunError(f"{file} has no column {name!r}; was it written by a run?")
    return list(batch.column(name).to_pylist())


def _failures(batch: pa.RecordBatch, file: str) -> Failures:
    stages, types, messages = (
        [value or "" for value in _column(batch, name, file)] for name in ("stage", "type", "message")
    )
    return Failures(_column(batch, "id", file), _column(batch, "source", file), stages, types, messages)


def _rows(batch: pa.RecordBatch, file: str, unpublished: bool) -> Rows:
    ids, texts = _column(batch, ID.name, file), _column(batch, TEXT.name, file)
    if "candidates" not in batch.schema.names:
        raise RunError(f"{file} has no column 'candidates'; was it written by a run?")
    lists = batch.column("candidates")
    values = lists.flatten()
    missing = [name for name in _REQUIRED if values.type.get_field_index(name) < 0]
    if missing:
        raise RunError(f"{file}: the candidates lack {', '.join(missing)}; was it written by a run?")
    columns = {name: _numbers(pc.struct_field(values, name)) for name in _REQUIRED}
    if all(values.type.get_field_index(name) >= 0 for name in _MEASURES):
        measures = [_numbers(pc.struct_field(values, name)) for name in _MEASURES]
    elif values.type.get_field_index("speech_ids") >= 0:
        measures = _measures(pc.struct_field(values, "speech_ids"))
    else:
        raise RunError(f"{file}: the candidates have neither speech_ids nor {' and '.join(_MEASURES)}")
    return Rows(
        ids,
        [text or "" for text in texts],
        _numbers(lists.value_lengths()).astype(np.int64),
        **columns,
        **dict(zip(_MEASURES, measures, strict=True)),
        unpublished=unpublished,
    )


def _numbers(array: pa.Array) -> np.ndarray:
    """A numpy array [k] with zero (False) for null."""
    return array.fill_null(False if pa.types.is_boolean(array.type) else 0).to_numpy(zero_copy_only=False)


def _measures(speech_ids: pa.Array) -> list[np.ndarray]:
    """The _MEASURES of candidates [k] whose tokens are stored and nothing else."""
    flat = speech_ids.flatten().to_numpy(zero_copy_only=False)
    lengths = _numbers(speech_ids.value_lengths()).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    shares = repeated_ngram_shares(flat, offsets).astype(np.float32)  # as precise as stored ones
    return [longest_runs(flat, offsets), shares]
