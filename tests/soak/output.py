"""What a run has left in its output, read back as a user would, and what must hold for it at any time."""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from pipeline.output.folder import OutputFolder
from tests.soak.workload import Workload


@dataclass(frozen=True)
class Stored:
    """All rows of `data` [by id] and `errors` [by source]; None where there is no file yet."""

    data: pa.Table | None
    errors: pa.Table | None

    @property
    def done(self) -> list[str]:
        return self.data["id"].to_pylist() if self.data else []

    @property
    def failed(self) -> list[str]:
        """Ids of failed rows, without those that have no id of their own."""
        rows = zip(self.errors["id"].to_pylist(), self._stages(), strict=True) if self.errors else ()
        return [row_id for row_id, stage in rows if stage != "manifest"]

    @property
    def rejected(self) -> int:
        return self._stages().count("manifest")

    def _stages(self) -> list[str]:
        return self.errors["stage"].to_pylist() if self.errors else []


def read_stored(output: OutputFolder) -> Stored:
    """Read every Parquet file completely; raises what Arrow raises when one of them is damaged."""
    return Stored(_read(output, "data", "id"), _read(output, "errors", "source"))


def _read(output: OutputFolder, folder: str, order: str) -> pa.Table | None:
    tables = [output.read_table(folder, name) for name in output.parquet_files(folder)]
    return pa.concat_tables(tables).sort_by(order).combine_chunks() if tables else None


def check_stored(stored: Stored, workload: Workload) -> None:
    """At any moment: no id twice, none in both tables, none that is not in the manifest."""
    counts = Counter(stored.done) + Counter(stored.failed)
    repeated = sorted(row_id for row_id, count in counts.items() if count > 1)
    assert not repeated, f"twice in the output: {repeated[:10]}"
    unknown = sorted(counts.keys() - workload.ids)
    assert not unknown, f"not in the manifest: {unknown[:10]}"


def check_finished(stored: Stored, workload: Workload) -> None:
    """In the end: every row of the manifest is there, once."""
    check_stored(stored, workload)
    missing = sorted(workload.ids - {*stored.done, *stored.failed})
    assert not missing, f"of {len(workload.ids)} rows {len(missing)} are missing: {missing[:10]}"
    assert stored.rejected == workload.rejected


def differences(stored: Stored, undisturbed: Stored) -> list[str]:
    """Columns of which any value differs, scores and order of candidates included."""
    found = []
    for name in ("data", "errors"):
        here, there = getattr(stored, name), getattr(undisturbed, name)
        if here is None or there is None:
            found += [f"{name}: no rows on one side"] if here is not there else []
        elif here.schema != there.schema:
            found.append(f"{name}: the schema")
        elif here.num_rows != there.num_rows:
            found.append(f"{name}: {here.num_rows} rows, {there.num_rows} undisturbed")
        else:
            found += [f"{name}.{c}" for c in here.column_names if not here[c].equals(there[c])]
    return found


class Watch:
    """Counts the rows that an output holds, published or not, looking at each file once."""

    def __init__(self, output: OutputFolder) -> None:
        self.output = output
        self.files: dict[tuple[str, str], list[str]] = {}
        self.rows: set[str] = set()

    def look(self) -> int:
        """The number of rows with an id that were seen so far."""
        for folder in ("_parts", "data", "errors"):
            for name in self.output.parquet_files(folder):
                if (folder, name) not in self.files:
                    self._read(folder, name)
        return len(self.rows)

    def published(self) -> int:
        """The number of files in `data`."""
        return len(self.output.parquet_files("data"))

    def _read(self, folder: str, name: str) -> None:
        columns = ["id", "stage"] if folder == "errors" else ["id"]
        try:
            table = self.output.read_table(folder, name, columns)
        except OSError:
            if folder == "_parts":  # it is being published, and its rows will be seen in `data`
                return
            raise
        ids = table["id"].to_pylist()
        if folder == "errors":
            ids = [i for i, stage in zip(ids, table["stage"].to_pylist(), strict=True) if stage != "manifest"]
        self.files[folder, name] = ids
        self.rows |= set(ids)
