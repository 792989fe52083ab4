"""Random and damaged manifests: each row ends as a good one or as an error, or the manifest is refused."""

import csv
import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clvp import ClvpTokenizer
from pipeline.errors import ManifestError, public
from pipeline.rows.manifest import open_manifest
from pipeline.rows.normalise import scan
from pipeline.rows.payloads import AUDIO_PAYLOAD, SPEECH_PAYLOAD, STORED_PAYLOAD, Payload
from pipeline.rows.plan import make_plan, rejected_rows, select_rows
from pipeline.rows.read import read_block
from pipeline.stages.tokens import TextToTokens, load_tokenizer
from tests.pipeline.fuzzing import fuzzed, mutated, mutations

NO_IDS = pa.chunked_array([], pa.large_string())


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> ClvpTokenizer:
    return load_tokenizer(str(checkpoint), "tortoise")


def check(data: bytes, suffix: str, payload: Payload, tokenizer: ClvpTokenizer) -> str:
    """Read a manifest of these bytes to its end; how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "m" + suffix)
        file.write_bytes(data)
        try:
            return check_rows(str(file), payload, tokenizer)
        except ManifestError as error:
            message = str(error)
        assert message.isprintable()
        assert 0 < len(message) <= 2_000
        return "refused"


def check_rows(file: str, payload: Payload, tokenizer: ClvpTokenizer) -> str:
    manifest, index = scan(open_manifest([file], payload))
    selection = select_rows(index, NO_IDS)
    rejected = list(rejected_rows(manifest, index, selection))
    assert all(row["type"] and row["message"] for row in rejected)
    plan = make_plan(index, selection.todo, 3)
    stage = TextToTokens(tokenizer, 401)
    found: list[str] = []
    for number in range(plan.num_blocks):
        table = stage(read_block(manifest, plan.slices_of(number)))
        table.validate(full=True)
        found += table["id"].to_pylist()
        for row in table.to_pylist():
            if row["error"] is None:
                assert row["text"]
                assert row["input_ids"]
                assert row[payload.field.name]
            else:
                assert row["error"]["type"].isidentifier()
                assert row["error"]["message"].isprintable()
                assert 0 < len(row["error"]["message"]) <= 500
    assert found == index.ids.take(pa.array(selection.todo)).to_pylist()
    assert len(found) + len(rejected) == len(index.ids)
    return "read"


TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zs", "Zl", "Mn"]), max_size=8),
    st.sampled_from(
        ["$,5", "1" * 300, "Dr. £3.50 1,000,000th 12:30 1999-01-01", "\x1b[2J", "\ufeff", "a\0b", "\ud800"]
    ),
    st.text("0123456789$£.,-:% ", max_size=60),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(10**30, 10**40), st.floats(), TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4) | st.just("path"), inner, max_size=3)
    ),
    max_leaves=12,
)
TOKENS = st.lists(st.integers(-2, 70_000), max_size=5)
CANDIDATE = st.fixed_dictionaries(
    {"speech_ids": TOKENS | VALUES}, optional={"candidate": SCALARS, "finished": SCALARS, "rank": SCALARS}
)
PAYLOADS = {
    "audio": st.one_of(
        st.just("a.wav"), VALUES, st.fixed_dictionaries({"path": TEXTS | SCALARS, "bytes": SCALARS})
    ),
    "speech_ids": st.one_of(TOKENS, st.lists(TOKENS, max_size=3), st.lists(CANDIDATE, max_size=3), VALUES),
    "candidates": st.one_of(st.lists(CANDIDATE, max_size=3), VALUES),
}
KINDS = {"audio": AUDIO_PAYLOAD, "speech_ids": SPEECH_PAYLOAD, "candidates": STORED_PAYLOAD}


def rows_of(column: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Rows that are good at first and hostile as the example grows."""
    row = st.fixed_dictionaries(
        {
            "id": st.text("abc", min_size=1, max_size=4) | VALUES,
            "text": st.just("Hello.") | TEXTS | VALUES,
            column: PAYLOADS[column],
        },
        optional={"n": VALUES, "": SCALARS, "error": VALUES},
    )
    return st.lists(row, min_size=1, max_size=6)


@pytest.mark.parametrize("column", list(PAYLOADS))
def test_jsonl(column: str, tokenizer: ClvpTokenizer) -> None:
    @fuzzed(80)
    @given(rows=rows_of(column), noise=st.lists(st.binary(max_size=20), max_size=2), seed=mutations())
    def run(rows: list[dict[str, Any]], noise: list[bytes], seed: int) -> None:
        lines = [json.dumps(row).encode() for row in rows]
        for i, piece in enumerate(noise):
            lines.insert(2 * i, piece)
        for data in (b"\n".join(lines), mutated(b"\n".join(lines), seed)):
            ends[check(data, ".jsonl", KINDS[column], tokenizer)] += 1

    ends: Counter[str] = Counter()
    run()
    # Seldom enough that no draw fails it: the examples change with every constant in the code.
    assert min(ends["read"], ends["refused"]) > 0.02 * ends.total(), ends


@pytest.mark.parametrize("column", ["audio", "speech_ids"])
def test_csv(column: str, tokenizer: ClvpTokenizer) -> None:
    fields = st.lists(TEXTS | st.just("a"), min_size=3, max_size=4)

    @fuzzed(120)
    @given(rows=st.lists(fields, max_size=6), quoting=st.sampled_from([0, 1]), seed=mutations())
    def run(rows: list[list[str]], quoting: int, seed: int) -> None:
        buffer = io.StringIO(newline="")
        csv.writer(buffer, quoting=quoting).writerows([["id", "text", column, "n"], *rows])
        data = buffer.getvalue().encode("utf-8", "surrogatepass")
        for changed in (data, mutated(data, seed)):
            ends[check(changed, ".csv", KINDS[column], tokenizer)] += 1

    ends: Counter[str] = Counter()
    run()
    assert min(ends["read"], ends["refused"]) > 0.05 * ends.total(), ends


@fuzzed(200)
@given(text=TEXTS | SCALARS, names=st.lists(TEXTS | SCALARS, max_size=3))
def test_a_digest_is_that_of_the_json(text: Any, names: list[Any]) -> None:
    """Outputs hold it: the formula is a promise."""
    seen = json.dumps(
        [text, [public(name) if isinstance(name, str) else name for name in names if name is not None]]
    )
    expected = hashlib.blake2b(seen.encode(), digest_size=8).digest()
    assert AUDIO_PAYLOAD.digest(text, names) == int.from_bytes(expected, "little")


@fuzzed(150)
@given(data=st.binary(max_size=300), suffix=st.sampled_from([".jsonl", ".csv", ".tsv", ".parquet"]))
def test_noise(data: bytes, suffix: str) -> None:
    check(data, suffix, AUDIO_PAYLOAD, lambda text: [1])


def parquet_columns() -> dict[str, list[pa.Array]]:
    """Columns of 12 rows, of many types for each name."""
    n = 12
    names = pa.array([f"row-{i}" for i in range(n)])
    texts = pa.array([None, "Hello.", "", "\x1b[31m", "x" * 6_000, *["Hello there."] * 7])
    clips = [
        {"bytes": b"RIFF", "path": None},
        {"bytes": None, "path": "a.wav"},
        None,
        {"bytes": None, "path": None},
    ]
    candidate = {"candidate": 1, "finished": None, "speech_ids": [1, 2], "score": 0.5}
    not_unicode = pa.array([b"\xff\xfe", b"ok"] * 6)
    invalid = pa.Array.from_buffers(pa.string(), n, not_unicode.buffers())
    return {
        "id": [
            *(names, names.dictionary_encode(), names.cast(pa.large_string()), names.cast(pa.string_view())),
            *(pa.array(range(n)), pa.array(range(n), pa.uint8()), pa.array(["same"] * n), invalid),
            *(pa.array(["x" * 2_000, None] * 6), pa.nulls(n), pa.array([1.5] * n), names.cast(pa.binary())),
        ],
        "text": [
            *(texts, texts.dictionary_encode(), texts.cast(pa.large_string()), texts.cast(pa.string_view())),
            *(pa.nulls(n), invalid, pa.array([["a"]] * n), texts.cast(pa.binary())),
        ],
        "audio": [
            *(pa.array(["a.wav", None, ""] * 4), pa.array(["a.wav"] * n).dictionary_encode(), invalid),
            *(pa.array(clips * 3), pa.array([clips, [], None] * 4), pa.array([["a.wav", None]] * n)),
            *(pa.array([["a.wav"] * 65, ["b.wav"]] * 6), pa.nulls(n), pa.array([[]] * n), pa.array([1] * n)),
            pa.array([{"path": "a.wav", "array": [0.1], "bytes": [1]}] * n),
            pa.array([["a.wav", "b.wav"]] * n, pa.list_(pa.string(), 2)),
        ],
        "candidates": [
            pa.array([[candidate], [candidate] * 2, None, []] * 3),
            pa.array([[1, 2], [70_000], [], None] * 3),
            pa.array([[[1], []], [[-1]], None] * 4),
            pa.array([[{"score": 1.0}]] * n),
            pa.array(["[[1, 2], [3]]", "[", None, "5"] * 3),
            pa.array([[[None]]] * n),
            pa.nulls(n),
        ],
        "n": [
            *(
                pa.nulls(n),
                pa.array([[[1], None]] * n),
                pa.array([{"a": 1, "b": [{"c": "x"}]}, None] * 6),
                invalid,
            ),
            *(pa.array(range(n)).cast(pa.timestamp("us")), pa.array([b"1234"] * n, pa.binary(4))),
            *(pa.array([[("a", 1)], None] * 6, pa.map_(pa.string(), pa.int8())), pa.array([True] * n)),
            *(
                pa.array(range(n)).cast(pa.duration("s")),
                pa.array([1.5] * n, pa.float16()),
                names.dictionary_encode(),
            ),
            *(pa.array([b"0123456789abcdef"] * n, pa.uuid()), pa.array(range(n)).cast(pa.decimal128(30, 2))),
            pa.ListArray.from_arrays(pa.array(range(n + 1), pa.int32()), invalid),
        ],
    }


COLUMNS = parquet_columns()


def parquet_bytes(columns: dict[str, pa.Array], options: Sequence[Any]) -> bytes:
    compression, dictionary, version, page, group = options
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns), sink, row_group_size=group, compression=compression, use_dictionary=dictionary,
        data_page_version=version, data_page_size=page,
    )  # fmt: skip
    return bytes(sink.getvalue())


def arrow_bytes(columns: dict[str, pa.Array], options: Sequence[Any]) -> bytes:
    sink, table = pa.BufferOutputStream(), pa.table(columns)
    with (pa.ipc.new_stream if options[1] else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=options[-1])
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("column", "suffix"), [("audio", ".parquet"), ("candidates", ".parquet"), ("audio", ".arrow")]
)
def test_columnar_files(column: str, suffix: str, tokenizer: ClvpTokenizer) -> None:
    choices = {name: st.sampled_from(COLUMNS[name]) for name in ("id", "text", column, "n")}
    options = st.tuples(
        st.sampled_from(["none", "snappy", "zstd", "gzip", "lz4"]),
        st.booleans(),
        st.sampled_from(["1.0", "2.0"]),
        st.sampled_from([16, 1 << 20]),
        st.sampled_from([1, 5, 12]),
    )

    @fuzzed(120)
    @given(columns=st.fixed_dictionaries(choices), options=options, seeds=st.lists(mutations(), max_size=4))
    def run(columns: dict[str, pa.Array], options: Sequence[Any], seeds: list[int]) -> None:
        data = (parquet_bytes if suffix == ".parquet" else arrow_bytes)(columns, options)
        for seed in [0, *seeds]:
            ends[check(mutated(data, seed), suffix, KINDS[column], tokenizer)] += 1

    ends: Counter[str] = Counter()
    run()
    assert min(ends["read"], ends["refused"]) > 0.05 * ends.total(), ends


def test_rows_behind_a_damaged_page_are_errors_and_those_before_are_not(
    tmp_path: Path, tokenizer: ClvpTokenizer
) -> None:
    rows = [{"id": f"{i:03}", "text": f"Text number {i} of many.", "audio": "a.wav"} for i in range(300)]
    file = tmp_path / "m.parquet"
    pq.write_table(
        pa.Table.from_pylist(rows), file, compression="zstd", data_page_size=64, use_dictionary=False,
        write_batch_size=20, row_group_size=200,
    )  # fmt: skip
    column = pq.read_metadata(file).row_group(0).column(1)
    data = bytearray(file.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 40] = b"\xff" * 40
    file.write_bytes(data)
    ends: dict[int, list[str]] = {}
    for rows_per_block in (7, 64, 300):
        manifest, index = scan(open_manifest([str(file)], AUDIO_PAYLOAD))
        plan = make_plan(index, select_rows(index, NO_IDS).todo, rows_per_block)
        blocks = [read_block(manifest, plan.slices_of(i)) for i in range(plan.num_blocks)]
        table = pa.concat_tables(blocks)
        assert table["id"].to_pylist() == [row["id"] for row in rows]
        ends[rows_per_block] = [(error or {"type": "good"})["type"] for error in table["error"].to_pylist()]
    assert ends[7] == ends[64] == ends[300], "however the rows are cut into blocks"
    first = ends[7].index("UnreadableRow")
    assert 40 <= first <= 160
    assert ends[7] == ["good"] * first + ["UnreadableRow"] * (200 - first) + ["good"] * 100
