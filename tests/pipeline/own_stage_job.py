"""A job with a stage of its own, which is declared here and nowhere else.

The stage stands behind `rank`, uses what an earlier stage has made of the text, and adds a column with a
value for every candidate. Run as a program, with the options of `jobs.synthesize`.
"""

import pyarrow as pa

from jobs import synthesize
from pipeline import stages
from pipeline.errors import ERROR
from pipeline.rows.columns import CANDIDATES, EXTRA_PREFIX, INPUT_IDS, map_rows, set_columns
from pipeline.settings import Run

RATIO = pa.field(EXTRA_PREFIX + "speech_per_text_token", pa.list_(pa.float32()))
declared = stages.declared


def speech_per_text_token(table: pa.Table) -> pa.Table:
    def of_row(i: int) -> list[float]:
        count = len(table["input_ids"][i])
        return [candidate["num_tokens"] / count for candidate in table["candidates"][i].as_py()]

    ratios, table = map_rows(table, "ratio", of_row)
    return set_columns(table, {RATIO: pa.array(ratios, RATIO.type)})


def with_own_stage(run: Run) -> list[stages.Stage]:
    *others, write = declared(run)
    own = stages.Stage(
        "ratio",
        lambda work: speech_per_text_token,
        input=pa.schema([INPUT_IDS, CANDIDATES, ERROR]),
        output=pa.schema([RATIO]),
        num_cpus=0.25,
    )
    return [*others, own, write]


if __name__ == "__main__":
    stages.declared = with_own_stage
    raise SystemExit(synthesize.main())
