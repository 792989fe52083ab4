"""Candidates that an earlier run has stored, found by row id: what a run that extends it starts from.

The driver keeps 20 bytes for every row of the earlier run: a hash of its id and where it lies. A block reads
the row groups that hold its rows, which are few, since rows stay close to their neighbours in the manifest.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ERROR
from pipeline.output.folder import OutputFolder
from pipeline.rows.columns import ID, TEXT, VOICE_KEY, good_rows
from pipeline.rows.payloads import SAMPLED_TYPE, STORED

INPUT = pa.schema([ID, TEXT, VOICE_KEY, ERROR])
COLUMNS = ["id", "text", "voice_key", "candidates"]  # of those that are stored


@dataclass(frozen=True)
class StoredCandidates:
    """Where each row of a finished output lies; arrays are sorted by `hashes`."""

    output: OutputFolder
    files: tuple[str, ...]
    sampled: int  # candidates that were sampled for every row; what was not kept is worse than what was
    hashes: np.ndarray  # uint64 [n], of the ids
    places: np.ndarray  # int32 [n, 2], number of the file and row group in it

    def attach(self, table: pa.Table) -> pa.Table:
        """The block with a column of the candidates stored for its good rows, null where there are none."""
        ids = table["id"].to_pylist()
        good = good_rows(table)
        found = self._find([ids[i] for i in good])
        texts, voices = table["text"].to_pylist(), table["voice_key"].to_pylist()
        values: list[Any] = [None] * len(ids)
        for i in good:
            row = found.get(ids[i])
            # Where the manifest has another text or voice by now, nothing that is stored fits the row.
            if row and (row["text"], row["voice_key"]) == (texts[i], voices[i]):
                values[i] = [{n: c[n] for n in SAMPLED_TYPE.names} for c in row["candidates"]]
        return table.append_column(STORED, pa.array(values, STORED.type))

    def _find(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        wanted = _hashes(ids)
        ends = (np.searchsorted(self.hashes, wanted, side) for side in ("left", "right"))
        places = {tuple(place) for a, b in zip(*ends, strict=True) for place in self.places[a:b].tolist()}
        found: dict[str, dict[str, Any]] = {}
        value_set = pa.array(ids, pa.string())
        for file, group in sorted(places):
            with self.output.open_table("data", self.files[file]) as parquet:
                rows = parquet.read_row_group(group, columns=COLUMNS)
            rows = rows.filter(pc.is_in(rows["id"], value_set=value_set))
            found |= {row["id"]: row for row in rows.to_pylist()}
        return found


def open_stored(output: OutputFolder, sampled: int) -> StoredCandidates:
    """Index the rows in `data` of an output in which every row had `sampled` candidates."""
    names = output.parquet_files("data")
    hashes, places = [np.zeros(0, np.uint64)], [np.zeros((0, 2), np.int32)]
    for number, name in enumerate(names):
        with output.open_table("data", name) as parquet:
            for group in range(parquet.num_row_groups):
                hashes.append(_hashes(parquet.read_row_group(group, columns=["id"])["id"].to_pylist()))
                places.append(np.tile(np.array([number, group], np.int32), (len(hashes[-1]), 1)))
    all_hashes = np.concatenate(hashes)
    order = np.argsort(all_hashes, kind="stable")
    return StoredCandidates(output, tuple(names), sampled, all_hashes[order], np.concatenate(places)[order])


def _hashes(ids: Sequence[str]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(row_id.encode(), digest_size=8).digest() for row_id in ids)
    return np.frombuffer(digests, np.uint64)
