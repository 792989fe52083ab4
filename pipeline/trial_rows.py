"""Which rows a trial runs.

The manifest is cut into blocks as the run would cut it. Of the blocks, ordered by the length of their texts,
one is drawn from each of as many equal parts as the trial has blocks, so that short and long texts take part
as they do in the manifest.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.rows.manifest import Manifest, open_file
from pipeline.rows.plan import make_plan
from pipeline.rows.scan import RowIndex

MAX_TEXTS = 5_000_000  # of Parquet manifests, that are read for their lengths


def choose_rows(
    manifest: Manifest, index: RowIndex, todo: np.ndarray, rows_per_block: int, num_blocks: int, seed: int = 0
) -> np.ndarray:
    """Positions of the rows of `num_blocks` blocks (or all there are), out of the positions `todo`."""
    plan = make_plan(index, todo, rows_per_block)
    sizes = np.add.reduceat(text_sizes(manifest, index)[todo], plan.starts)
    order = np.argsort(sizes, kind="stable")
    generator = np.random.default_rng(seed)
    parts = np.array_split(order, min(num_blocks, plan.num_blocks))
    ends = np.append(plan.starts[1:], len(todo))
    blocks = sorted(int(generator.choice(part)) for part in parts)
    return np.concatenate([todo[plan.starts[block] : ends[block]] for block in blocks])


def text_sizes(manifest: Manifest, index: RowIndex) -> np.ndarray:
    """Float [rows], larger for longer texts: bytes of the text, or of the whole record in text files.

    Of a very large Parquet manifest the average of the row group.
    """
    locations = index.locations
    sizes = locations["num_bytes"].astype(float)
    is_parquet = locations["group"] >= 0
    if not 0 < is_parquet.sum() <= MAX_TEXTS:
        return sizes
    starts = np.flatnonzero(np.diff(locations["file"], prepend=-1) | np.diff(locations["group"], prepend=-2))
    for begin, end in zip(starts, np.append(starts[1:], len(locations)), strict=True):
        if is_parquet[begin]:
            uri = manifest.files[int(locations["file"][begin])].uri
            lengths = _text_lengths(uri, int(locations["group"][begin]))
            sizes[begin:end] = lengths[locations["begin"][begin:end]]
    return sizes


def _text_lengths(uri: str, group: int) -> np.ndarray:
    with open_file(uri) as stream:
        batches = pq.ParquetFile(stream).iter_batches(8192, row_groups=[group], columns=["text"])
        texts = (batch.column(0).cast(pa.large_string()) for batch in batches)
        return np.concatenate([pc.fill_null(pc.binary_length(text), 0).to_numpy() for text in texts])
