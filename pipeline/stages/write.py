"""Stage 6, `write`: a finished block becomes one file, whole or absent.

A block's file holds its rows *and* its errors, so no kill can leave a row in both or half of a block. Its
name follows from the ids in it: a block that is written twice replaces itself. `pipeline.output.publish`
merges the files of many blocks into few in `data` and `errors`, which is all that readers look at.
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ERROR
from pipeline.output.folder import OutputFolder
from pipeline.rows.columns import (
    CANDIDATES,
    ENGINE,
    ID,
    ROW_DIGEST,
    SEED,
    SOURCE,
    TEXT,
    VOICE_KEY,
    extra_fields,
    set_columns,
)
from pipeline.rows.plan import block_name

INPUT = pa.schema([ID, TEXT, CANDIDATES, SOURCE, ROW_DIGEST, ERROR])
SAMPLED = pa.schema([VOICE_KEY, ENGINE])  # null where the candidates were not sampled by this run
# And the pass-through columns, prefixed.
PART = pa.schema([ID, TEXT, SEED, VOICE_KEY, ROW_DIGEST, CANDIDATES, ENGINE, SOURCE, ERROR])

# What the stage hands to the driver: one row per block.
REPORT = pa.schema(
    [
        ("part", pa.string()),
        ("num_bytes", pa.int64()),
        ("rows", pa.int64()),
        ("failed", pa.int64()),
        ("candidates", pa.int64()),
        ("tokens", pa.int64()),
        ("unfinished", pa.int64()),  # candidates without a stop token
        ("best_s", pa.float64()),  # of speech, of the best candidate of each row
        ("best_score", pa.float64()),  # of those, on average; null where there is none
        ("engine", pa.string()),  # null where nothing was sampled
    ]
)


@dataclass
class BlockWriter:
    """Callable on a block: writes its part and returns its report."""

    output: OutputFolder
    seed: int | None

    def __call__(self, table: pa.Table) -> pa.Table:
        if not len(table):
            return REPORT.empty_table()
        absent = [field for field in SAMPLED if field.name not in table.column_names]
        table = set_columns(table, {field: [None] * len(table) for field in absent})
        name = block_name(table["id"].to_pylist()) + ".parquet"
        table = set_columns(table, {SEED: [self.seed] * len(table)})
        part = table.select([*PART.names, *(field.name for field in extra_fields(table.schema))])
        return report_of(table, name, self.output.write_table("_parts", name, part))


def report_of(table: pa.Table, name: str, num_bytes: int) -> pa.Table:
    candidates = pc.list_flatten(table["candidates"])
    failed = len(table) - table["error"].null_count
    best = candidates.filter(pc.equal(pc.struct_field(candidates, "rank"), 1))
    row = {
        "part": name,
        "num_bytes": num_bytes,
        "rows": len(table) - failed,
        "failed": failed,
        "candidates": len(candidates),
        "tokens": pc.sum(pc.struct_field(candidates, "num_tokens")).as_py() or 0,
        "unfinished": pc.sum(pc.invert(pc.struct_field(candidates, "finished"))).as_py() or 0,
        "best_s": pc.sum(pc.struct_field(best, "duration_s")).as_py() or 0.0,
        "best_score": pc.mean(pc.struct_field(best, "score")).as_py(),
        "engine": next((value for value in table["engine"].to_pylist() if value is not None), None),
    }
    return pa.Table.from_pylist([row], schema=REPORT)
