"""Where audio may come from: hosts and buckets that the user has named, what lies below the audio root."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.checkpoint import describe_checkpoint
from pipeline.errors import RowError
from pipeline.output.folder import OutputFolder
from pipeline.rows.manifest import open_manifest
from pipeline.rows.normalise import scan
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import make_plan, select_rows
from pipeline.settings import ExecutionSettings, ResultSettings, Run
from pipeline.stages import Chain, Work, stages_of
from pipeline.stages.decode import decode_clip
from tests.pipeline.clips import NO_IDS, write_clip, write_jsonl
from tests.s3_server import BUCKET, S3Server


@dataclass
class Web:
    """A web server of one clip. `/sent/…` sends on to `sends_to`."""

    clip: bytes
    sends_to: str = ""
    port: int = 0
    asked: list[str] = field(default_factory=list)  # paths of all requests

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def web(clip: bytes, sends_to: str = "") -> Iterator[Web]:
    served = Web(clip, sends_to)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            sent = self.path.startswith("/sent")
            self.send_response(302 if sent else 200)
            self.send_header("Location", served.sends_to) if sent else None
            self.send_header("Content-Length", "0" if sent else str(len(served.clip)))
            self.end_headers()
            if self.command == "GET" and not sent:
                self.wfile.write(served.clip)

        do_HEAD = do_PUT = do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def clip(tmp_path: Path) -> bytes:
    return write_clip(tmp_path / "clip.wav").read_bytes()


def refusal(path: str, *places: str, root: str | None = None) -> RowError:
    with pytest.raises(RowError) as caught:
        decode_clip(None, path, 6.0, root, places)
    return caught.value


def run_on(checkpoint: Path, manifest: str, **execution: Any) -> list[dict[str, Any]]:
    """The rows of a manifest after the stages `read`, `validate` and `audio`."""
    run = Run((manifest,), "out", str(checkpoint), ResultSettings(), ExecutionSettings(**execution))
    opened, index = scan(open_manifest(run.manifest, AUDIO_PAYLOAD))
    work = Work(run, opened, describe_checkpoint(run.model), OutputFolder("out"), 0)
    plan = make_plan(index, select_rows(index, NO_IDS).todo, 100)
    rows = Chain(stages_of(run)[:3], work)(plan.slices_of(0)).select(["id", "error"]).to_pylist()
    return [row["error"] and row["error"] | {"id": row["id"]} for row in rows]


# ---- hosts and buckets ----


def test_a_host_is_asked_only_when_it_is_named(checkpoint: Path, tmp_path: Path, clip: bytes) -> None:
    with web(clip) as server:
        names = [
            f"{server.host}/a.wav",
            f"{server.host.upper()}/a.wav",
            f"http://u:p@{server.host[7:]}/a.wav",
        ]
        rows = [{"id": str(i), "text": "Hello.", "audio": name} for i, name in enumerate(names)]
        manifest = str(write_jsonl(tmp_path / "m.jsonl", rows))
        errors = run_on(checkpoint, manifest)
        assert [error["type"] for error in errors] == ["AudioNotAllowed"] * 3
        assert f"--audio-hosts {server.host}" in errors[0]["message"]
        assert server.asked == []
        errors = run_on(checkpoint, manifest, audio_hosts=(server.host,))
        assert errors == [None] * 3
        assert set(server.asked) == {"/a.wav"}


def test_a_manifest_on_a_host_brings_the_audio_of_that_host() -> None:
    named = storage.places(["http://host:81/d/m.jsonl", "/local/m.csv", "http://host:81/e/n.jsonl"])
    assert named == ("http://host:81/",)
    assert storage.placed("http://host:81/x/a.wav?v=1", named[0]) == "http://host:81/x/a.wav?v=1"
    for other in (
        "http://host/a.wav",
        "https://host:81/a.wav",
        "http://host:81@evil/a.wav",
        "http://host:81\\@evil/",
    ):
        assert storage.placed(other, named[0]) is None


def test_a_named_host_cannot_send_on_to_another(clip: bytes) -> None:
    with web(clip) as inside, web(clip, f"{inside.host}/a.wav") as outside:
        error = refusal(f"{outside.host}/sent/a.wav", outside.host)
        assert error.kind == "AudioNotFound"
        assert f"sends on to {inside.host}" in str(error)
        assert inside.asked == []
        assert len(decode_clip(None, f"{outside.host}/sent/a.wav", 6.0, None, (outside.host, inside.host)))
        assert inside.asked


@pytest.mark.parametrize(
    "form",
    [
        "s3://{bucket}/k.wav?endpoint_override={host}&scheme=http&region=x",
        "s3://{bucket}/k.wav?region=x&endpoint_override={host}&scheme=http?region=x",
        "s3://other/k.wav?endpoint_override={host}&scheme=http&region=x",
        "s3://KEY:SECRET@{bucket}/k.wav?endpoint_override={host}&scheme=http&region=x",
        "k.wav?endpoint_override={host}&scheme=http&region=x",
    ],
)
def test_options_never_come_from_the_data(
    s3: S3Server, checkpoint: Path, tmp_path: Path, clip: bytes, form: str
) -> None:
    """Not even on a bucket that is named: the request would be signed, and sent to whom the data says."""
    with web(clip) as server:
        audio = form.format(bucket=BUCKET, host=server.host[7:])
        row = f'{{"id": "a", "text": "Hello.", "audio": "{audio}"}}'
        local = str(write_jsonl(tmp_path / "m.jsonl", [row]))
        key = f"{tmp_path.name}/m.jsonl"
        s3.client().upload_file(local, BUCKET, key)
        for manifest in (s3.uri(key), local):
            hosts = (f"s3://{BUCKET}{s3.query}", f"s3://other{s3.query}")
            (error,) = run_on(checkpoint, manifest, audio_hosts=hosts)
            assert error["type"] in ("AudioNotFound", "UnreadableAudio", "AudioNotAllowed")
            assert server.asked == []


def test_options_come_from_the_manifest_or_from_what_is_named(
    s3: S3Server, checkpoint: Path, tmp_path: Path, clip: bytes
) -> None:
    folder = tmp_path.name
    s3.client().put_object(Bucket=BUCKET, Key=f"{folder}/a.wav", Body=clip)
    names = ["a.wav", f"s3://{BUCKET}/{folder}/a.wav", s3.uri(f"{folder}/a.wav")]
    rows = [{"id": str(i), "text": "Hello.", "audio": name} for i, name in enumerate(names)]
    local = str(write_jsonl(tmp_path / "m.jsonl", rows))
    s3.client().upload_file(local, BUCKET, f"{folder}/m.jsonl")
    assert run_on(checkpoint, s3.uri(f"{folder}/m.jsonl")) == [None] * 3
    for execution in ({"audio_hosts": (f"s3://{BUCKET}{s3.query}",)}, {"audio_root": s3.uri(folder)}):
        assert run_on(checkpoint, local, **execution)[1:] == [None] * 2, execution
    secret = s3.uri(f"{folder}/m.jsonl").replace("s3://", "s3://test:test@")
    assert run_on(checkpoint, secret)[:2] == [None] * 2


def test_what_is_no_host_is_no_setting() -> None:
    with pytest.raises(ValueError, match="audio_hosts"):
        ExecutionSettings(audio_hosts=("example.org",))


# ---- the audio root ----


@pytest.mark.parametrize("swapped", ["voices", "voices/deep", "voices/deep/a.wav"])
def test_what_is_swapped_for_a_link_after_the_check_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    root = tmp_path / "root"
    name = write_clip(root / "voices" / "deep" / "a.wav")
    write_clip(tmp_path / "outside" / "voices" / "deep" / "a.wav", 0.25)
    assert len(decode_clip(None, str(name), 6.0, str(root)))
    resolve = os.path.realpath

    def swapping(path: str, **options: Any) -> str:
        found = resolve(path, **options)
        if found.endswith("a.wav") and not (root / swapped).is_symlink():
            (root / swapped).rename(tmp_path / "gone")
            (root / swapped).symlink_to(tmp_path / "outside" / swapped)
        return found

    monkeypatch.setattr(os.path, "realpath", swapping)
    assert refusal(str(name), root=str(root)).kind == "UnreadableAudio"


def test_links_that_change_all_the_time_lead_nowhere_else(tmp_path: Path) -> None:
    """As it was found: a folder and a link out of the root change places while clips are opened."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    write_clip(root / "voices" / "a.wav", 0.5)
    write_clip(outside / "a.wav", 0.25)
    (root / "link").symlink_to(outside)
    length = len(decode_clip(None, str(root / "voices" / "a.wav"), 6.0, str(root)))
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for old, new in (("voices", "x"), ("link", "voices"), ("voices", "link"), ("x", "voices")):
                os.rename(root / old, root / new)

    thread = threading.Thread(target=swap)
    thread.start()
    lengths = set()
    try:
        for _ in range(1500):
            with suppress(RowError):
                lengths.add(len(decode_clip(None, str(root / "voices" / "a.wav"), 6.0, str(root))))
    finally:
        stop.set()
        thread.join()
    assert lengths <= {length}
