"""Whatever options and JSON files say that cannot be, a job ends with one sentence that names it."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clvp import ClvpConfig, ClvpFeatureExtractor, ClvpGenerationConfig, ClvpTokenizer
from clvp.checkpoint import CheckpointError
from clvp.random_checkpoint import write_random_checkpoint
from jobs import rank, replay, report, synthesize
from jobs.options import Setting, read_run, settings_of
from pipeline.checkpoint import describe_checkpoint
from pipeline.errors import RunError
from pipeline.inputs import check_model
from pipeline.rows.columns import SEED
from pipeline.settings import ResultSettings, Run
from tests.pipeline.synthetic_output import make_rows, write_data, write_run

EXAMPLES = int(os.environ.get("CLVP_FUZZ_EXAMPLES", "40"))
PATHS = ["--manifest", "m.csv", "--output", "out", "--model", "model"]
SETTINGS = [s for s in settings_of(synthesize.TEMPLATE) if not s.path.endswith(".max_size")]
fuzz = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# Numbers at and beyond every edge that a field may have, and words that are none.
EDGES = [0, 1, -1, 2**15, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**4000, 0.5, 1e-300, 1e300]
WORDS = [
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "none",
    "null",
    "true",
    "[]",
    "9" * 5000,
    "1_0",
    "٣",
    "s3://",
    "\x1b[31m",
]
texts = st.sampled_from([*map(str, EDGES[:-6]), *map(repr, EDGES[-3:]), *WORDS]) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20
)
plain = st.sampled_from([None, True, float("nan"), float("inf"), *EDGES, *WORDS])
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["content", "a", "0"]), inner)
    ),
)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


PARSER = synthesize.make_parser()


def ended(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> Run | str:
    """The run that options describe, or the one message that they are refused with."""
    code = None
    try:
        return read_run(PARSER, PARSER.parse_args(arguments), synthesize.TEMPLATE)
    except SystemExit as stop:
        code = stop.code
    usage, *lines = capsys.readouterr().err.rstrip("\n").split("\n")
    assert code == 2
    assert usage.startswith("usage: ")
    assert len(lines) == 1, lines
    return lines[0]


def check_usable(run: Run) -> None:
    """What is not refused can be stored, and used where numbers have a size."""
    assert isinstance(run.results, ResultSettings)
    pa.array([run.results.sampling.seed], SEED.type)
    for setting in settings_of(run):
        if isinstance(setting.default, int):
            assert -(2**63) <= setting.default < 2**63 or setting.path.endswith("bytes"), setting
        if isinstance(setting.default, float):
            assert math.isfinite(setting.default), setting
    assert all(run.manifest), run
    assert run.output
    assert run.model


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.flag for setting in SETTINGS])
def test_an_option_is_taken_or_named(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    """In all combinations with what takes a value; a switch takes none."""

    @settings(fuzz, max_examples=max(EXAMPLES // 2, 20))
    @given(texts)
    def check(text: str) -> None:
        found = ended(capsys, [*PATHS, f"{setting.flag}={text}"])
        if isinstance(found, Run):
            check_usable(found)
        else:
            name = setting.path.rpartition(".")[2]
            assert setting.flag in found or f"{name}=" in found, found

    check()


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--num-candidates", "0"),
        ("--seed", str(2**63)),
        ("--output", ""),
        ("--manifest", ""),
        ("--model", ""),
        ("--audio-root", ""),
        ("--extend", ""),
        ("--samplers", "0"),
        ("--torch-threads", "1000000"),
        ("--report-seconds", "inf"),
        ("--gpus-per-sampler", "inf"),
        ("--penalized-tokens", "-1"),
        ("--top-k", str(2**63)),
    ],
)
def test_the_option_at_fault_is_named(flag: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = ended(capsys, [*PATHS, f"{flag}={text}"])
    assert isinstance(message, str)
    assert f"argument {flag}: " in message


@fuzz
@given(st.sampled_from([s.path for s in settings_of(synthesize.TEMPLATE)]), values)
def test_a_value_of_a_file_is_taken_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, value: Any
) -> None:
    content = value
    for name in reversed(path.split(".")):
        content = {name: content}
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(content))
    found = ended(capsys, [*PATHS, "--config", str(file)])
    if isinstance(found, Run):
        check_usable(found)
    else:
        assert path.rpartition(".")[2] in found or str(file) in found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.yaml", nested(10_000)),
        ("run.yaml", "results: &a {b: *a}"),
        ("run.yaml", "seed: 2024-99-99"),
        ("run.yaml", "\x00"),
        ("run.yaml", b"\xff\xfe\xff"),
        ("run.toml", "a = " + nested(10_000)),
        ("run.toml", b"\xff"),
    ],
)
def test_a_hostile_file_of_settings_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str | bytes
) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    message = ended(capsys, [*PATHS, "--config", str(tmp_path / name)])
    assert isinstance(message, str)
    assert str(tmp_path / name) in message


# ---- the JSON of a checkpoint ----

LOADERS: dict[str, Any] = {
    "config.json": ClvpConfig,
    "generation_config.json": ClvpGenerationConfig,
    "preprocessor_config.json": ClvpFeatureExtractor,
    "tokenizer_config.json": ClvpTokenizer,
    "special_tokens_map.json": ClvpTokenizer,
    "added_tokens.json": ClvpTokenizer,
    "vocab.json": ClvpTokenizer,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """Of the checkpoint, with all files that a tokenizer may have."""
    shutil.copytree(checkpoint, tmp_path / "model")
    ClvpTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refusal(model: Path, name: str) -> str | None:
    """What the library and the jobs say of a checkpoint: one sentence, or nothing."""
    told: list[str] = []
    with suppress(RunError):
        check_model(describe_checkpoint(str(model)), Run((), "out", str(model), ResultSettings()))
    try:
        LOADERS[name].from_pretrained(model)
    except CheckpointError as error:
        told.append(str(error))
    assert "\n" not in "".join(told)
    return told[0] if told else None


@pytest.mark.parametrize("name", LOADERS)
def test_any_value_in_the_json_of_a_checkpoint_is_taken_or_named(copy: Path, name: str) -> None:
    whole = json.loads((copy / name).read_text())
    if name in ("added_tokens.json", "special_tokens_map.json"):  # where the newer file does not say it again
        (copy / "tokenizer_config.json").unlink()
    if name == "tokenizer_config.json":
        whole |= {"additional_special_tokens": [], "extra_special_tokens": [], "truncation_side": "right"}

    @fuzz
    @given(st.data())
    def check(data: st.DataObject) -> None:
        content, place = json.loads(json.dumps(whole)), []
        holder = content
        while True:
            key = data.draw(st.sampled_from(sorted(holder)[:60]))
            place.append(key)
            if not isinstance(holder[key], dict) or not holder[key] or data.draw(st.integers(0, 3)) == 0:
                break
            holder = holder[key]
        holder[key] = data.draw(values)
        (copy / name).write_text(json.dumps(content))
        told = refusal(copy, name)
        assert told is None or name in told or "tokenizer" in told, told

    check()


@pytest.mark.parametrize("name", [*LOADERS, "model.safetensors.index.json"])
@pytest.mark.parametrize(
    "text", [nested(150), nested(10_000), f'{{"a": {nested(10_000)}}}', "", "5", '"\\ud800"']
)
def test_json_of_another_kind_is_named(copy: Path, name: str, text: str) -> None:
    (copy / name).write_text(text)
    if name == "added_tokens.json":  # of older checkpoints
        (copy / "tokenizer_config.json").unlink()
    if name not in LOADERS:
        (copy / "model.safetensors").unlink()
        with pytest.raises(RunError, match=name) as refused:
            describe_checkpoint(str(copy))
        assert "\n" not in str(refused.value)
        return
    told = refusal(copy, name)
    assert told is not None
    assert name in told


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("config.json", "decoder_config", []),
        ("config.json", "text_config", "x"),
        ("generation_config.json", "max_new_tokens", "many"),
        ("preprocessor_config.json", "hop_length", 0),
        ("tokenizer_config.json", "added_tokens_decoder", [1]),
        ("tokenizer_config.json", "unk_token", 5),
        ("tokenizer_config.json", "model_max_length", "long"),
        ("special_tokens_map.json", "bos_token", {"content": 5}),
    ],
)
def test_the_field_at_fault_is_named(copy: Path, name: str, field: str, value: Any) -> None:
    if name == "special_tokens_map.json":
        (copy / "tokenizer_config.json").unlink()
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(content | {field: value}))
    told = refusal(copy, name)
    assert told is not None
    assert field in told or repr(value) in told


def test_a_size_of_a_part_is_named_with_the_part(copy: Path) -> None:
    content = json.loads((copy / "config.json").read_text())
    content["decoder_config"]["hidden_size"] = "wide"
    (copy / "config.json").write_text(json.dumps(content))
    told = refusal(copy, "config.json")
    assert told is not None
    assert "config.json" in told
    assert "decoder_config: hidden_size='wide'" in told


# ---- run.json, and what a run has stored ----


def job(capsys: pytest.CaptureFixture[str], main: Any, *arguments: str) -> tuple[int, str]:
    """Exit code and message of a job, which is one line, or none where the job succeeds."""
    code = main(arguments)
    err = capsys.readouterr().err
    assert err.count("\n") == bool(code), err
    return code, err


def jobs_on(output: Path) -> Iterator[tuple[Any, list[str]]]:
    """Jobs that read an output without Ray."""
    yield report.main, ["--output", str(output)]
    yield replay.main, ["--output", str(output), "--id", "row-000001"]
    yield rank.main, ["--run", str(output), "--output", str(output / "again"), "--model", str(output)]


def test_any_value_in_run_json_is_taken_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, count=3, candidates=2)
    told = dataclasses.asdict(ResultSettings())
    whole = json.loads((tmp_path / "run.json").read_text()) | {"job": "synthesize", "settings": told}

    @settings(fuzz, max_examples=max(EXAMPLES // 5, 8))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        content = json.loads(json.dumps(whole))
        holder, key = content, data.draw(st.sampled_from(sorted(content)))
        while isinstance(holder[key], dict) and holder[key] and data.draw(st.integers(0, 3)):
            holder = holder[key]
            key = data.draw(st.sampled_from(sorted(holder)))
        holder[key] = data.draw(values)
        (tmp_path / "run.json").write_text(json.dumps(content))
        for main, arguments in jobs_on(tmp_path):
            code, message = job(capsys, main, *arguments)
            assert (code == 0) == (main is report.main), message

    check()


@pytest.mark.parametrize("text", [nested(150), nested(10_000), f'{{"settings": {nested(10_000)}}}', "", "5"])
def test_a_run_json_of_another_kind_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    write_run(tmp_path, count=3, candidates=2)
    (tmp_path / "run.json").write_text(text)
    for main, arguments in jobs_on(tmp_path):
        code, message = job(capsys, main, *arguments)
        assert (code == 0) if main is report.main else "run.json" in message


numbers = st.sampled_from([float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 1e-45, 0.0, 1.0])


@settings(fuzz, max_examples=max(EXAMPLES // 5, 8))
@given(st.data())
def test_a_report_over_numbers_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    rows = make_rows(3, 4)
    for name in data.draw(st.sampled_from([["score"], ["duration_s"], ["score", "duration_s"]])):
        some = st.sampled_from(data.draw(st.lists(numbers, min_size=1, max_size=3)))
        for row in rows:
            for candidate in row["candidates"]:
                candidate[name] = data.draw(some)
    write_data(tmp_path, rows)
    assert job(capsys, report.main, "--output", str(tmp_path)) == (0, "")
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["candidates"]["all"]["count"] == 12


def test_figures_are_of_the_numbers_that_are_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = make_rows(4, 2)
    rows[0]["candidates"][0]["score"] = float("nan")
    rows[1]["candidates"][1]["score"] = float("inf")
    write_data(tmp_path / "some", rows)
    write_data(tmp_path / "good", rows[2:])
    for name in ("some", "good"):
        assert job(capsys, report.main, "--output", str(tmp_path / name))[0] == 0
    some, good = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("some", "good"))
    assert some["best_of_n"] == good["best_of_n"]
    assert some["candidates"]["all"]["score"]["count"] == 6


# ---- places and streams ----


class ReadOnly(BaseHTTPRequestHandler):
    """A server that has no file."""

    def do_GET(self) -> None:
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def test_an_output_that_can_only_be_read_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": "a", "text": "b", "audio": "c.wav"}\n')
    with HTTPServer(("127.0.0.1", 0), ReadOnly) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}/out"
        arguments = ["--manifest", str(tmp_path / "m.jsonl"), "--model", str(checkpoint), "--output", uri]
        code, message = job(capsys, synthesize.main, *arguments)
        server.shutdown()
    assert code == 1
    assert "cannot be written" in message


@pytest.mark.parametrize(
    "uri",
    [
        "s3://",
        "s3:///",
        "http://",
        "http://127.0.0.1:9/x",
        "nothing://x",
        "file://",
        "file://x",
        "m.jsonl/out",
    ],
)
def test_an_output_that_cannot_be_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], uri: str, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.jsonl").write_text('{"id": "a", "text": "b", "audio": "c.wav"}\n')
    arguments = ["--manifest", "m.jsonl", "--model", str(checkpoint), "--output", uri]
    code, message = job(capsys, synthesize.main, *arguments)
    assert code == 1
    assert message.startswith("python -m jobs.synthesize: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"], "no folder of that name was made"


@pytest.mark.parametrize(
    ("redirect", "output", "code"),
    [
        ("2>/dev/full", "nothing", 1),
        ("2>&-", "nothing", 1),
        (">/dev/full", "run", 1),
        (">/dev/full 2>/dev/full", "run", 1),
        (">&- 2>&-", "run", 0),
    ],
)
def test_streams_that_are_closed_or_full(tmp_path: Path, redirect: str, output: str, code: int) -> None:
    """The exit code is the job's own, and what can still be said is one line."""
    write_run(tmp_path / "run", count=3, candidates=2)
    command = f'"{sys.executable}" -m jobs.report --output "{tmp_path / output}" {redirect}'
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=variables)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) <= 1, done.stderr
