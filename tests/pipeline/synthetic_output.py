"""A run's output folder with plausible rows, made without a model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.description import SCHEMA_VERSION
from pipeline.errors import ERROR_TYPE
from pipeline.metrics import MetricsLog, Sample
from pipeline.output.publish import DATA, ERRORS
from pipeline.rows.columns import QUALITY_FIELDS
from pipeline.rows.token_measures import SECONDS_PER_TOKEN, quality_columns
from pipeline.stages.rank import CANDIDATE_TYPE

MEASURES = [field.name for field in QUALITY_FIELDS]
PLAIN_FIELDS = [field for field in CANDIDATE_TYPE if field.name not in MEASURES]
WORDS = [
    "a",
    "the",
    "river",
    "speaks",
    "of",
    "seventeen",
    "quiet",
    "mornings",
    "before",
    "winter",
    "and",
    "every",
    "lantern",
    "burned",
    "until",
    "dawn",
]


def make_rows(count: int, candidates: int = 16, seed: int = 0, prefix: str = "row") -> list[dict[str, Any]]:
    """Rows as the data files hold them, without the measures of quality."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        text = " ".join(random.choice(WORDS, size=random.geometric(0.06)))
        scored = [_candidate(random, i, text) for i in range(candidates)]
        scored.sort(key=lambda item: (not item["finished"], -item["score"], item["candidate"]))
        ranked = [{**item, "rank": rank} for rank, item in enumerate(scored, start=1)]
        rows.append({"id": f"{prefix}-{number:06}", "text": text, "seed": 0, "candidates": ranked})
    return rows


def _candidate(random: np.random.Generator, index: int, text: str) -> dict[str, Any]:
    seconds = (
        (0.2 + 0.062 * len(text)) * random.lognormal(0, 0.12) * random.choice([1, 2.5], p=[0.985, 0.015])
    )
    num_tokens = int(np.clip(seconds / SECONDS_PER_TOKEN, 1, 500))
    tokens = random.integers(0, 8192, num_tokens)
    pause = min(int(random.geometric(0.25)), num_tokens)
    tokens[num_tokens // 2 : num_tokens // 2 + pause] = 83
    if random.random() < 0.03:
        tokens[num_tokens // 3 :] = np.resize(tokens[:7], num_tokens - num_tokens // 3)
    return candidate(index, random.normal(12, 2.5) - 0.002 * num_tokens, tokens, num_tokens < 500)


def candidate(index: int, score: float, tokens: Any, finished: bool = True) -> dict[str, Any]:
    """One candidate without its rank."""
    return {
        "candidate": index,
        "score": float(np.float32(score)),
        "speech_ids": np.asarray(tokens).tolist(),
        "num_tokens": len(tokens),
        "finished": bool(finished),
        "duration_s": float(np.float32(len(tokens) * SECONDS_PER_TOKEN)),
    }


def data_table(rows: list[dict[str, Any]]) -> pa.Table:
    """The rows with the schema of a run."""
    items = [item for row in rows for item in row["candidates"]]
    fields = [*PLAIN_FIELDS, *QUALITY_FIELDS]
    arrays = [pa.array([item[field.name] for item in items], field.type) for field in PLAIN_FIELDS]
    tokens = [[np.asarray(item["speech_ids"]) for item in row["candidates"]] for row in rows]
    arrays += quality_columns([row["text"] for row in rows], tokens)
    offsets = np.cumsum([0, *(len(row["candidates"]) for row in rows)])
    lists = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(arrays, fields=fields)
    )
    names = [name for name in DATA.names if name != "candidates"]
    columns = [pa.array([row.get(name) for row in rows], DATA.field(name).type) for name in names]
    return pa.table([*columns, lists], names=[*names, "candidates"])


def write_data(output: Path, rows: list[dict[str, Any]], name: str = "a") -> None:
    _write(data_table(rows), output / "data" / f"{name}.parquet")


def write_errors(output: Path, rows: list[dict[str, Any]], name: str = "a") -> None:
    _write(pa.Table.from_pylist(rows, schema=ERRORS), output / "errors" / f"{name}.parquet")


def write_part(
    output: Path, rows: list[dict[str, Any]], errors: list[dict[str, Any]], name: str = "a"
) -> None:
    """A block's own file: rows and errors together, not yet published."""
    table = data_table([*rows, *({"id": e["id"], "text": None, "candidates": []} for e in errors)])
    records = [None] * len(rows) + [{k: e[k] for k in ("stage", "type", "message")} for e in errors]
    table = table.append_column(
        "source", pa.array([None] * len(rows) + [e["source"] for e in errors], pa.string())
    )
    _write(table.append_column("error", pa.array(records, ERROR_TYPE)), output / "_parts" / f"{name}.parquet")


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=100)


def error(
    number: int, stage: str = "audio", kind: str = "AudioNotFound", message: str = "no such file"
) -> dict[str, Any]:
    return {
        "id": f"bad-{number}",
        "source": f"manifest.csv, row {number}",
        "stage": stage,
        "type": kind,
        "message": message,
    }


def write_description(output: Path, num_candidates: int = 16, **changes: Any) -> None:
    settings = {
        "num_candidates": num_candidates,
        "audio_seconds": 6.0,
        "sampling": {"temperature": 0.8, "top_k": 50, "top_p": 0.8, "repetition_penalty": 2.0, "seed": 0},
        "scoring": {"keep": None, "scoring_length": 500, "unfinished_last": True},
    }
    known = {
        "schema_version": SCHEMA_VERSION,
        "package_version": "0",
        "job": "synthesize",
        "settings": settings,
    }
    description = {**known, "model_files": {}, "columns": {}, "engine": None, "about": {}, **changes}
    output.mkdir(parents=True, exist_ok=True)
    (output / "run.json").write_text(json.dumps(description))


def write_metrics(output: Path, began: float, rates: list[float], left: int = 0) -> None:
    """One session with a sample every ten seconds, at these speech tokens per second."""
    log = MetricsLog(str(output), seconds=1)
    tokens = 0.0
    for i, rate in enumerate(rates, start=1):
        tokens += 10 * rate
        rows = round(tokens / 2400)
        busy = {"audio": 0.6 * i, "sample": 9.1 * i, "rank": 1.3 * i, "write": 0.2 * i}
        sample = Sample(
            time=began + 10 * i,
            elapsed_s=10.0 * i,
            rows=rows,
            failed=i // 7,
            candidates=16 * rows,
            tokens=round(tokens),
            audio_s=tokens * SECONDS_PER_TOKEN,
            left=left + len(rates) - i,
            gpus=1,
            busy_s=busy,
            lanes_s=0.8 * busy["sample"],
        )
        log.add(sample)


def write_run(output: Path, count: int = 320, candidates: int = 16, seed: int = 0) -> list[dict[str, Any]]:
    """A whole run of `count` rows in several files, with failures and metrics; returns its rows."""
    rows = make_rows(count, candidates, seed)
    for start in range(0, count, 128):
        write_data(output, rows[start : start + 128], f"{start:06}")
    failures = [error(i) for i in range(7)] + [
        error(7, "text", "TextTooLong", "text has 512 tokens; at most 401")
    ]
    failures += [error(8, "manifest", "DuplicateId", "the id occurs further up")]
    write_errors(output, failures)
    write_description(output, num_candidates=candidates)
    random = np.random.default_rng(seed)
    write_metrics(output, 1.767e9, [*np.linspace(0, 3000, 6), *random.normal(3100, 150, 60)])
    write_metrics(output, 1.767e9 + 900, [*np.linspace(0, 3000, 6), *random.normal(3300, 150, 40)])
    return rows
