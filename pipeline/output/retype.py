"""Columns of an output without any value: whatever type they were given, another one is no conflict."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.folder import OutputFolder
from pipeline.rows.columns import EXTRA_PREFIX, set_columns


def without_values(output: OutputFolder, names: set[str]) -> set[str]:
    """Those pass-through columns of these names in which no stored row has a value, as the footers say."""
    for folder, file in _files(output):
        if names:
            with output.open_table(folder, file) as parquet:
                present = {name.removeprefix(EXTRA_PREFIX) for name in parquet.schema_arrow.names}
                names = names & present - _with_values(parquet.metadata)
    return names


def retype(output: OutputFolder, columns: pa.Schema) -> None:
    """Write the files anew in which these columns, none of which has a value, are of other types.

    Ended anywhere, some files are done; the rest is what the next call finds.
    """
    for folder, file in _files(output):
        schema, prefix = output.schema(folder, file), EXTRA_PREFIX * (folder == "_parts")
        there = [field.with_name(prefix + field.name) for field in columns]
        there = [field for field in there if field.name in schema.names]
        if changed := [field for field in there if schema.field(field.name).type != field.type]:
            table = output.read_table(folder, file)
            values = {field: table[field.name].to_pylist() for field in changed}  # lists may be empty
            output.write_table(folder, file, set_columns(table, values))


def _files(output: OutputFolder) -> Iterator[tuple[str, str]]:
    for folder in ("data", "_parts"):
        yield from ((folder, name) for name in output.parquet_files(folder))


def _with_values(metadata: pq.FileMetaData) -> set[str]:
    """Columns that hold a value, or of which it is not known."""
    found = set()
    for number in range(metadata.num_columns):
        column = metadata.schema.column(number)
        for group in range(metadata.num_row_groups):
            leaf = metadata.row_group(group).column(number)
            known = leaf.statistics
            nulls = known.null_count if known is not None and known.has_null_count else 0
            if nulls < leaf.num_values and str(column.logical_type) != "Null":
                found.add(column.path.removeprefix(EXTRA_PREFIX).partition(".")[0])
    return found
