"""A formula over columns, as a person writes it: an SQL expression, evaluated by DuckDB in a closed room.

It comes from a command line, or from the run.json of whoever: the database reads no file, opens no connection
and loads no extension.
"""

from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

CLOSED: dict[str, Any] = {"enable_external_access": "false", "lock_configuration": "true", "threads": "1"}


class Formula:
    """Callable on a table. Raises ValueError, when it is made, for what cannot be evaluated on `columns`."""

    def __init__(self, text: str, columns: pa.Schema, kind: pa.DataType) -> None:
        self.text, self.kind = text, kind
        self.database = duckdb.connect(config=CLOSED)
        try:
            found = self._column(pa.Table.from_pylist([{}, {}], columns))
        except duckdb.Error as error:
            reason = str(error).splitlines()[0].rstrip("!.")
            raise ValueError(f"{text!r}: {reason}. Columns are {', '.join(columns.names)}") from error
        numeric = pa.types.is_integer(found.type) or pa.types.is_floating(found.type)
        if len(found) != 2:
            raise ValueError(f"{text!r} gives {len(found)} values for two candidates, not one for each")
        if found.type != kind and not (numeric and pa.types.is_floating(kind)):
            raise ValueError(f"{text!r} is {found.type}, not {kind}")

    def __call__(self, table: pa.Table) -> list[Any]:
        """Its value for each row, None where one that it needs is null."""
        return list(self._column(table).cast(self.kind).to_pylist())

    def _column(self, table: pa.Table) -> pa.ChunkedArray:
        column = self.database.from_arrow(table).select(duckdb.SQLExpression(self.text)).to_arrow_table()[0]
        return pc.cast(column, pa.float64()) if pa.types.is_decimal(column.type) else column
