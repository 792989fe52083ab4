"""The quality flags of every stored candidate, in `OUTPUT/flags`: one file per data file.

The flags include the robust z-score of the duration, which only the whole run can give: what is usual comes
from a pass over all candidates, so the tables are written anew by every report that is asked for them.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.report import unusual
from pipeline.report.pace import PaceModel
from pipeline.report.stored import Rows, StoredOutput
from pipeline.rows import token_measures

FOLDER = "flags"

# One row per candidate, in the order of the data file.
FLAGS = pa.schema(
    [
        ("id", pa.string()),
        ("candidate", pa.int16()),
        ("rank", pa.int16()),
        ("unfinished", pa.bool_()),
        ("empty", pa.bool_()),
        ("long_run", pa.bool_()),
        ("repeated", pa.bool_()),
        ("duration_z", pa.float32()),  # null: unfinished or empty, so its duration says nothing
        ("unusual_duration", pa.bool_()),
        ("any", pa.bool_()),
    ]
)


def write_flags(stored: StoredOutput, model: PaceModel) -> str:
    """Write the flags of all published candidates; returns the folder.

    `model` is what is usual in this run. Raises RunError when a data file cannot be read.
    """
    folder = storage.join(stored.uri, FOLDER)
    scratch = storage.join(stored.uri, "_scratch")
    names = []
    for file in stored.data_files():
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, FLAGS, compression="zstd") as writer:
            for rows in stored.rows_of(file):
                writer.write_table(flag_table(rows, model))
        names.append(storage.name_of(file))
        storage.write_atomically(storage.join(folder, names[-1]), sink.getvalue(), scratch)
    stale = set(storage.list_names(folder, ".parquet")) - set(names)
    storage.delete_files([storage.join(folder, name) for name in stale])
    return folder


def flag_table(rows: Rows, model: PaceModel) -> pa.Table:
    """FLAGS for the candidates of a batch of rows."""
    owners = rows.owners
    characters = np.array([token_measures.count_characters(text) for text in rows.texts], np.int64)[owners]
    z = model.z(rows, characters)
    flags = unusual.token_flags(rows.finished, rows.num_tokens, rows.longest_run, rows.repeated_ngrams)
    flags["unusual_duration"] = np.abs(np.nan_to_num(z)) > unusual.OUTLIER_Z
    columns = {
        "id": pa.array(rows.ids, pa.string()).take(pa.array(owners)),
        "candidate": pa.array(rows.candidate, pa.int16()),
        "rank": pa.array(rows.rank, pa.int16()),
        "duration_z": pa.array(z.astype(np.float32), pa.float32(), from_pandas=True),
        "any": pa.array(np.any(list(flags.values()), axis=0)),
        **{name: pa.array(mask) for name, mask in flags.items()},
    }
    return pa.table([columns[name] for name in FLAGS.names], schema=FLAGS)
