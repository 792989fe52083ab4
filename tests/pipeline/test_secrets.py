"""Credentials that stand in URIs, and what a terminal would obey, come out nowhere."""

import io
import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clvp.sampling import SamplingParams
from jobs import replay, synthesize
from jobs.cli import describe as describe_summary
from jobs.cli import job_parser, print_result
from pipeline import storage
from pipeline.description import SCHEMA_VERSION, describe, differences
from pipeline.errors import ManifestError, RowError, RunError, error_record, public, safe
from pipeline.output.folder import OutputFolder
from pipeline.progress import Progress
from pipeline.replay import Replayer
from pipeline.report import write_report
from pipeline.rows.manifest import open_manifest
from pipeline.rows.normalise import scan
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import rejected_rows, select_rows
from pipeline.run import synthesize as synthesize_rows
from pipeline.settings import ExecutionSettings, Pool, ResultSettings, Run
from pipeline.stream.envelope import Envelope
from pipeline.stream.workers import guarded
from tests.pipeline.clips import NO_IDS, blocks_of, write_clip, write_jsonl
from tests.pipeline.test_description import CHECKPOINT, COLUMNS
from tests.s3_server import BUCKET, S3Server

SECRET = "wJal/rX+Ut%2FEXAMPLE"
TERMINAL = "\x1b[2J\x1b]0;title\x07\u202e"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"s3://KEY:{SECRET}@bucket/a@b/c", "s3://bucket/a@b/c"),
        ("S3://KEY:se@cret@bucket/x", "S3://bucket/x"),
        ("https://token@host/x.wav", "https://host/x.wav"),
        ("https://host/x.wav?X-Amz-Signature=secret&b='c,d", "https://host/x.wav"),
        ("s3://b/x?&secret_key=secret", "s3://b/x"),
        ("s3://b/x?%73ecret_key=a?b", "s3://b/x"),
        ("abfs://container:secret@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("abfss://container@account/x?sig=secret", "abfss://container@account/x"),
        ("http://127.0.0.1:9000/mail@home", "http://127.0.0.1:9000/mail@home"),
        ("http://[::1]:9000/mail@home", "http://[::1]:9000/mail@home"),
        ("a 's3://b/x?k=v': no such file, nor s3://k:v@b/y.", "a 's3://b/x': no such file, nor s3://b/y."),
        ("no URI: a:b@c?d=e", "no URI: a:b@c?d=e"),
        ("s3://b/d/*/?.csv", "s3://b/d/*/?.csv"),
    ],
)  # fmt: skip
def test_the_public_form_of_a_text(text: str, shown: str) -> None:
    assert public(text) == shown
    assert public(shown) == shown


@pytest.mark.parametrize("piece", ["://", "://a:", "?", "?=", "@", "://a:?b='", "'"])
def test_a_hostile_text_costs_no_time(piece: str) -> None:
    """Seconds at most; what takes a second step back for every first one would take hours."""
    assert len(public("://" + piece * (300_000 // len(piece)))) <= 300_003


def test_every_kind_of_error_and_message_is_public_and_safe(caplog: pytest.LogCaptureFixture) -> None:
    text = f"cannot open s3://KEY:{SECRET}@b/x?secret_key=hush: {TERMINAL}"
    texts = [str(kind(text)) for kind in (ManifestError, RunError)]
    texts += [
        error_record("audio", RowError("Kind", text))["message"],
        str(pickle.loads(pickle.dumps(RunError(text)))),
    ]
    stream = io.StringIO()
    Progress(1, 1.0, stream).note(text)

    def stage(_: pa.Table) -> pa.Table:
        raise OSError(text)

    with caplog.at_level(logging.ERROR):
        sealed = guarded("audio", stage)(Envelope(0, pa.table({"x": [1]})).seal())
    texts += [stream.getvalue(), caplog.text, str(Envelope.open(sealed).stopped)]
    assert len(texts) == 7
    for shown in texts:
        assert "cannot open s3://b/x" in shown, shown
        assert not [bad for bad in ("KEY", "EXAMPLE", "hush", "\x1b", "\x07", "\u202e") if bad in shown], (
            shown
        )
    assert safe("a\nb\x1b") == "a\nb\\x1b", "lines stay lines"


def test_a_manifest_read_with_credentials_leaves_none_in_its_rows(s3: S3Server, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "text": "x", "audio": "clips/a.wav"},
        {"id": "a", "text": "x", "audio": "a.wav"},
        {"id": "b", "text": None, "audio": "a.wav"},
    ]
    name = f"{tmp_path.name}/m.jsonl"
    s3.client().put_object(Bucket=BUCKET, Key=name, Body="\n".join(map(json.dumps, rows)).encode())
    uri = f"s3://test:hush@{BUCKET}/{name}{s3.query}"
    manifest, (table,) = blocks_of(uri)
    assert table["audio"].to_pylist()[0] == [
        {"bytes": None, "path": f"s3://{BUCKET}/{tmp_path.name}/clips/a.wav"}
    ]
    index = scan(manifest)[1]
    rejected = list(rejected_rows(manifest, index, select_rows(index, NO_IDS)))
    assert [row["source"] for row in rejected] == [f"s3://{BUCKET}/{name}, row 2"]
    assert "hush" not in f"{table.to_pylist()} {rejected}"
    with pytest.raises(FileNotFoundError) as missing:
        storage.expand(uri.replace("m.jsonl", "none*.jsonl"))
    assert "hush" not in str(missing.value)


def test_other_credentials_are_no_other_run() -> None:
    def told(secret: str) -> Any:
        uri = f"s3://key:{secret}@bucket/m.csv?session_token={secret}"
        return describe(Run((uri,), "out", "model", ResultSettings(), extend=uri), CHECKPOINT, COLUMNS)

    assert differences(told("hush"), told("quiet")) == []
    assert "hush" not in str(told("hush"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--manifest", "m.csv", f"--gpus=s3://KEY:hush@b/{TERMINAL}"],
        ["--manifest", "m.csv", "--config", f"s3://KEY:hush@/{TERMINAL}"],
        [f"--nothing=s3://KEY:hush@b/{TERMINAL}"],
    ],
)
def test_a_wrong_option_is_not_repeated_as_it_is(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit):
        synthesize.main(arguments)
    shown = capsys.readouterr().err
    assert "error: " in shown
    assert not [bad for bad in ("KEY", "hush", "\x1b", "\u202e") if bad in shown], shown


def test_a_hostile_output_cannot_write_to_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = {
        "schema_version": SCHEMA_VERSION,
        "settings": {TERMINAL: 1},
        "model_files": {},
        "columns": {},
        "job": "synthesize",
    }
    (tmp_path / "run.json").write_text(json.dumps(content | {"package_version": "1"}))
    assert replay.main(["--output", str(tmp_path), "--id", "a"]) == 1
    assert print_result(job_parser("test", None), lambda: f"row {TERMINAL} of s3://KEY:hush@b/x") == 0
    shown = capsys.readouterr()
    assert r"\x1b[2J" in shown.err
    assert r"\x1b[2J" in shown.out
    assert not [bad for bad in ("hush", "\x1b", "\x07", "\u202e") if bad in shown.err + shown.out]


@pytest.mark.parametrize(
    ("manifest", "named"),
    [
        ("s3://elsewhere/m.csv", True),
        ("s3://runs/m.csv?endpoint_override=evil", True),
        ("http://127.0.0.1/m.csv", True),
        ("/no/such/m.csv", False),
    ],
)
def test_a_replay_asks_no_host_that_only_run_json_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: str, named: bool
) -> None:
    from pipeline import replay as pipeline_replay

    asked: list[str] = []

    def no_model(location: str) -> None:
        asked.append(location)
        raise RunError("asked")

    monkeypatch.setattr(pipeline_replay, "describe_checkpoint", no_model)
    run = Run(("m.csv",), "out", "model", ResultSettings())
    described = json.loads(json.dumps(describe(run, CHECKPOINT, COLUMNS), default=vars))
    told = ({"manifest": [manifest]}, {"model": manifest}, {"reading": {"voices": manifest}})
    for field in told:
        about = {"manifest": ["m.csv"], "model": "model"} | field
        (tmp_path / "run.json").write_text(json.dumps(described | {"about": about}))
        with pytest.raises(RunError, match="name it yourself" if named else "asked"):
            pipeline_replay.Replayer(str(tmp_path))
    assert asked == ([] if named else ["model", manifest, "model"])


@pytest.mark.slow
def test_a_run_with_credentials_in_every_uri_leaves_none_behind(
    s3: S3Server, ray_instance: None, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor does another secret make it another run, or a replay need one in what run.json names."""

    def uri(name: str, secret: str = "hush") -> str:
        return f"s3://test:{secret}@{BUCKET}/{tmp_path.name}/{name}{s3.query}"

    rows = [{"id": name, "text": "Hello.", "audio": f"{name}.wav"} for name in ("good", "missing", "good")]
    write_jsonl(tmp_path / "m.jsonl", [*rows, rows[0] | {"id": "other", "audio": "s3://other/a.wav"}])
    write_clip(tmp_path / "good.wav")
    for path in (tmp_path / "m.jsonl", tmp_path / "good.wav", *checkpoint.iterdir()):
        folder = "model/" if path.parent == checkpoint else ""
        s3.client().upload_file(str(path), BUCKET, f"{tmp_path.name}/{folder}{path.name}")
    settings = ResultSettings(num_candidates=1, sampling=SamplingParams(max_new_tokens=4))
    pool = Pool(1, 1, num_gpus=0)
    execution = ExecutionSettings(samplers=pool, rankers=pool, torch_threads=1)
    run = Run((uri("m.jsonl"),), uri("out"), uri("model"), settings, execution)
    assert print_result(job_parser("test", None), lambda: describe_summary(synthesize_rows(run))) == 0
    again = synthesize_rows(replace(run, manifest=(uri("m.jsonl", "quiet"),), output=uri("out", "quiet")))
    assert (again.done_before, again.failed_before, again.totals.rows) == (1, 2, 0)
    assert Replayer(uri("out")).replay("good").identical
    report = write_report(uri("out"))
    errors = OutputFolder(uri("out"))
    tables = [
        errors.read_table(folder, name)
        for folder in ("data", "errors")
        for name in errors.parquet_files(folder)
    ]
    kinds = {row["type"] for table in tables for row in table.to_pylist() if "type" in row}
    assert kinds == {"AudioNotFound", "AudioNotAllowed", "DuplicateId"}
    found = s3.client().list_objects_v2(Bucket=BUCKET, Prefix=f"{tmp_path.name}/out/")["Contents"]
    texts = [s3.client().get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read() for item in found]
    shown = capfd.readouterr()
    everything = f"{texts} {[table.to_pylist() for table in tables]} {report.figures} {shown.out} {shown.err}"
    assert f"s3://{BUCKET}/{tmp_path.name}/m.jsonl" in everything
    assert not [bad for bad in ("hush", "quiet", "test:", "endpoint_override") if bad in everything]


def test_a_copy_of_a_manifest_holds_no_credentials(tmp_path: Path) -> None:
    """Nor options: where a clip is opened, they are those of the host or bucket that was named."""
    secret = "s3://KEY:hush@bucket/a.wav?endpoint_override=host&scheme=http"
    rows = [
        {"id": "plain", "text": "x", "audio": "a.wav"},
        {"id": "one", "text": "x", "audio": secret},
        {"id": "list", "text": "x", "audio": ["b.wav", {"path": secret}]},
    ]
    manifest, index = scan(open_manifest([str(write_jsonl(tmp_path / "m.jsonl", rows))], AUDIO_PAYLOAD))
    assert index.ids.to_pylist() == ["plain", "one", "list"]
    for file in manifest.files:
        table = pq.read_table(file.copy)
        assert "hush" not in str(table.to_pylist())
        assert "endpoint_override" not in str(table["audio"].to_pylist())
        assert table["error"].null_count == 3
