"""What the driver does besides the stream: scan and plan, resume, publish."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.folder import OutputFolder
from pipeline.output.publish import Files, publish, recover
from pipeline.rows.manifest import open_manifest
from pipeline.rows.normalise import RowIndex, scan
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import make_plan, select_rows
from pipeline.stages.write import BlockWriter
from tests.simulation.gauge import Gauge
from tests.simulation.workload import finished_block, write_manifest

NO_IDS = pa.chunked_array([], pa.large_string())


@dataclass(frozen=True)
class Step:
    """One step of the driver, and what it took of this process."""

    name: str
    rows: int
    files: int
    megabytes: float  # read or written
    seconds: float
    cpu_seconds: float
    peak: int  # bytes of private memory, beyond what there was before


def scan_and_plan(folder: Path, rows: int, rows_per_block: int) -> tuple[list[Step], RowIndex]:
    """Index a manifest and cut all of it into blocks."""
    path = folder / f"manifest-{rows}.parquet"
    megabytes = write_manifest(path, rows) / 1e6
    with Gauge(every=0.02) as scanning:
        index = scan(open_manifest([str(path)], AUDIO_PAYLOAD))[1]
    with Gauge(every=0.02) as planning:
        selection = select_rows(index, NO_IDS)
        plan = make_plan(index, selection.todo, rows_per_block)
    scanned = Step("scan the manifest", rows, 1, megabytes, *_taken(scanning))
    return [scanned, Step(f"plan {plan.num_blocks:,} blocks", rows, 0, 0, *_taken(planning))], index


def resume(output: OutputFolder, place: str, index: RowIndex, files: int, parts: int) -> Iterator[Step]:
    """Recover what an earlier run has left: all rows, in `files` files and `parts` parts; then plan again."""
    ids = index.ids.to_pylist()
    writer = BlockWriter(output, 0)
    block = finished_block(0, 256, candidates=1)  # recover reads the columns of ids and errors alone
    published = len(ids) - 256 * parts
    for rows in np.array_split(np.arange(published), files):
        data = pa.table({"id": pa.array([ids[i] for i in rows], pa.string())})
        sink = pa.BufferOutputStream()
        pq.write_table(data, sink, compression="zstd")
        output.write("data", f"{rows[0]:09}.parquet", sink.getvalue())
    for begin in range(published, len(ids), 256):
        writer(block.set_column(0, block.schema.field(0), pa.array(ids[begin : begin + 256], pa.string())))
    with Gauge(every=0.02) as gauge:
        recovered = recover(Files(output))
    yield Step(f"recover, {place}", len(ids), files + parts, 0, *_taken(gauge))
    with Gauge(every=0.02) as gauge:
        left = select_rows(index, recovered.ids).todo
    assert not len(left)
    yield Step("leave out what is done", len(ids), 0, 0, *_taken(gauge))


def publishing(output: OutputFolder, place: str, megabytes: int, rows_per_part: int = 256) -> Step:
    """Publish parts of together `megabytes` as one file."""
    block, names, size = finished_block(0, rows_per_part), [], 0
    while size < megabytes * 1e6:
        begin = len(names) * rows_per_part
        ids = pa.array([f"utterance-{n:09}" for n in range(begin, begin + rows_per_part)])
        report = BlockWriter(output, 0)(block.set_column(0, block.schema.field(0), ids)).to_pylist()[0]
        names.append(report["part"])
        size += report["num_bytes"]
    with Gauge(every=0.05) as gauge:
        publish(Files(output), names)
    rows = len(names) * rows_per_part
    return Step(f"publish {len(names)} parts, {place}", rows, 1, size / 1e6, *_taken(gauge))


def _taken(gauge: Gauge) -> tuple[float, float, int]:
    return gauge.seconds, gauge.looks[-1].cpu_seconds, gauge.peak
