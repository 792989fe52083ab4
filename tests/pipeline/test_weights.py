"""Every node works with the files that the run began with, and fetches them once."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import clvp.checkpoint
from clvp import (
    ClvpConditioningEncoder,
    ClvpFeatureExtractor,
    ClvpForCausalLM,
    ClvpModelForConditionalGeneration,
    ClvpTokenizer,
)
from clvp.checkpoint import CheckpointSource
from pipeline.checkpoint import Checkpoint, describe_checkpoint, fetch
from pipeline.errors import RunError
from pipeline.node_cache import cache_folder
from tests.pipeline.s3_relay import Relay, s3_relay
from tests.s3_server import BUCKET, CREDENTIALS, S3Server, s3_server

WEIGHTS = "model.safetensors"
Enter = Callable[[str], Path]


@pytest.fixture
def enter_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Enter:
    """Makes this process one on the node of that name: its cache, and nothing remembered."""

    def enter(name: str) -> Path:
        monkeypatch.setenv("CLVP_CACHE", str(tmp_path / "nodes" / name))
        fetch.cache_clear()
        return cache_folder()

    enter("driver")
    return enter


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- which files ----


def _plain(folder: Path) -> None:
    pass


def _in_shards(folder: Path) -> None:
    ClvpModelForConditionalGeneration.from_pretrained(folder).save_pretrained(folder, max_shard_size="1MB")


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _two_formats(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")


def _one_processor_file(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    (folder / "processor_config.json").write_text(
        json.dumps({"feature_extractor": json.loads(path.read_text())})
    )
    path.unlink()


def _old_tokenizer(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").write_text("{}")


@pytest.mark.parametrize(
    "change", [_plain, _in_shards, _pickled, _two_formats, _one_processor_file, _old_tokenizer]
)
def test_described_are_the_files_that_are_read(
    folder: Path, enter_node: Enter, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    change(folder)
    described = describe_checkpoint(str(folder))
    read: dict[str, Path] = {}
    find = CheckpointSource.file

    def recorded(source: CheckpointSource, name: str) -> Path | None:
        path = find(source, name)
        if path is not None:
            read[name] = path
        return path

    monkeypatch.setattr(CheckpointSource, "file", recorded)
    ClvpTokenizer.from_pretrained(folder, normalizer="tortoise")
    ClvpFeatureExtractor.from_pretrained(folder)
    for model in (ClvpConditioningEncoder, ClvpForCausalLM, ClvpModelForConditionalGeneration):
        model.from_pretrained(folder)
    read.pop("generation_config.json")  # settings of `generate`, which the pipeline does not use
    assert described.location == str(folder)
    assert described.files == {name: sha256(path) for name, path in read.items()}
    assert fetch(described) == str(folder)


@pytest.mark.parametrize("name", ["config.json", "vocab.json", WEIGHTS])
def test_a_folder_that_is_no_checkpoint(folder: Path, enter_node: Enter, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(RunError, match="weights" if name == WEIGHTS else name):
        describe_checkpoint(str(folder))


def test_locations_that_are_nothing(
    tmp_path: Path, enter_node: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for location in ("/no/such/folder", "file:///no/such/folder", "magic://bucket/model"):
        with pytest.raises(RunError, match=f"the model {location} cannot be used"):
            describe_checkpoint(location)


def test_an_index_that_points_elsewhere(folder: Path, enter_node: Enter) -> None:
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
    index = {"weight_map": {"a": f"../{WEIGHTS}"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RunError, match="lies outside"):
        describe_checkpoint(str(folder))


# ---- folders ----


def test_a_node_with_one_other_file(folder: Path, enter_node: Enter) -> None:
    described = describe_checkpoint(str(folder))
    for name in described.files:
        path, content = folder / name, (folder / name).read_bytes()
        # The same length and time: another version of the weights differs in nothing else.
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        path.write_bytes(content[:-1] + (b"\t" if content[-1:] == b" " else b" "))
        os.utime(path, ns=times)
        fetch.cache_clear()
        with pytest.raises(RunError, match=f"{name} is not the file that the run began with"):
            fetch(described)
        path.write_bytes(content)
    fetch.cache_clear()
    assert fetch(described) == str(folder)


def test_a_node_with_a_file_less_or_more(folder: Path, enter_node: Enter) -> None:
    described = describe_checkpoint(str(folder))
    (folder / "special_tokens_map.json").rename(folder / "aside")
    with pytest.raises(RunError, match=r"special_tokens_map\.json is missing"):
        fetch(described)
    (folder / "aside").rename(folder / "special_tokens_map.json")
    assert fetch(described) == str(folder)
    fetch.cache_clear()
    (folder / "preprocessor_config.json").rename(folder / "aside")
    shutil.copy(folder / "aside", folder / "processor_config.json")
    with pytest.raises(RunError, match=r"preprocessor_config\.json is missing"):
        fetch(described)
    shutil.rmtree(folder)
    with pytest.raises(RunError, match="there is no folder"):
        fetch(described)


AT_ONCE = """
    import hashlib, sys, time
    from pathlib import Path

    log, location, files = Path(sys.argv[1]), sys.argv[2], dict(item.split("=") for item in sys.argv[3:])
    digest = hashlib.file_digest

    def slow_digest(file, name):
        with log.open("a") as stream:
            stream.write(Path(file.name).name + "\\n")
        time.sleep(0.2)
        return digest(file, name)

    hashlib.file_digest = slow_digest
    from pipeline.checkpoint import Checkpoint, fetch
    print("ready", flush=True)
    sys.stdin.readline()
    print(fetch(Checkpoint(location, files)), flush=True)
"""


def start_process(described: Checkpoint, log: Path, limit: str = "") -> subprocess.Popen[str]:
    """A process that is ready to fetch and waits for a line; it logs the files that it reads for digests."""
    files = [f"{name}={digest}" for name, digest in described.files.items()]
    process = subprocess.Popen(
        [sys.executable, "-c", limit + textwrap.dedent(AT_ONCE), str(log), described.location, *files],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def fetch_at_once(described: Checkpoint, log: Path, count: int = 4) -> list[str]:
    """What `count` processes of this node get that fetch at the same time."""
    processes = [start_process(described, log) for _ in range(count)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, answers
    return [out.strip() for out, _ in answers]


@pytest.mark.slow
def test_four_processes_compute_every_digest_once(folder: Path, enter_node: Enter, tmp_path: Path) -> None:
    described = describe_checkpoint(str(folder))
    enter_node("worker")
    log = tmp_path / "log"
    assert fetch_at_once(described, log) == [str(folder)] * 4
    assert sorted(log.read_text().split()) == sorted(described.files)


# ---- hub ids ----


def test_a_repository_that_changes_while_the_run_starts(
    folder: Path, tmp_path: Path, enter_node: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes that come later get the commit of the description, not what is newest by then."""
    old, new = "a" * 40, "b" * 40
    hub = tmp_path / "hub" / "snapshots"
    newest = old

    def download(repo: str, name: str, **options: object) -> str:
        assert repo == "someone/clvp"
        revision = options["revision"] or newest
        if not (folder / name).exists():
            raise clvp.checkpoint.EntryNotFoundError(name)
        path = hub / str(revision) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, path)
        if revision == new and name == WEIGHTS:
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        return str(path)

    monkeypatch.setattr(clvp.checkpoint, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    described = describe_checkpoint("someone/clvp")
    assert described.location == f"someone/clvp@{old}"
    newest = new
    shutil.rmtree(hub)
    enter_node("worker")
    assert fetch(described) == str(hub / old)
    assert sorted(os.listdir(hub / old)) == sorted(described.files)
    later = describe_checkpoint("someone/clvp")
    assert later.location == f"someone/clvp@{new}"
    assert [name for name, digest in later.files.items() if described.files[name] != digest] == [WEIGHTS]
    assert describe_checkpoint(f"someone/clvp@{old}") == described
    (hub / old / WEIGHTS).unlink()  # comes again
    fetch.cache_clear()
    assert fetch(described) == str(hub / old)
    with pytest.raises(RunError, match=f"{WEIGHTS} is not the file that the run began with"):
        fetch(Checkpoint(f"someone/clvp@{new}", described.files))


@pytest.mark.slow
def test_a_cached_hub_id_needs_no_connection(folder: Path, tmp_path: Path, enter_node: Enter) -> None:
    commit = "c" * 40
    repository = tmp_path / "hf" / "hub" / "models--someone--clvp"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    script = """
        from pipeline.checkpoint import describe_checkpoint, fetch
        described = describe_checkpoint("someone/clvp")
        print(described.location, fetch(described))
    """
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        **{"env": environment, "cwd": Path(__file__).parents[2], "capture_output": True, "text": True},
    )
    assert done.stdout.split() == [f"someone/clvp@{commit}", str(repository / "snapshots" / commit)], (
        done.stderr
    )


# ---- object stores ----


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def relay(server: S3Server) -> Iterator[Relay]:
    with s3_relay(server) as relay:
        yield relay


@pytest.fixture
def bucket_folder(server: S3Server, folder: Path, tmp_path: Path) -> str:
    """Key of a checkpoint in the bucket."""
    for path in folder.iterdir():
        server.client().upload_file(str(path), BUCKET, f"{tmp_path.name}/model/{path.name}")
    return f"{tmp_path.name}/model"


def replace_object(server: S3Server, key: str, content: bytes) -> None:
    server.client().put_object(Bucket=BUCKET, Key=key, Body=content)


def test_a_checkpoint_in_a_bucket(folder: Path, bucket_folder: str, relay: Relay, enter_node: Enter) -> None:
    described = describe_checkpoint(relay.uri(bucket_folder))
    assert described.files == describe_checkpoint(str(folder)).files
    assert relay.gets == dict.fromkeys(described.files, 1)
    local = Path(fetch(described))
    assert {path.name: sha256(path) for path in local.iterdir()} == described.files
    assert describe_checkpoint(relay.uri(bucket_folder)) == described
    assert relay.gets == dict.fromkeys(described.files, 1)  # what the driver has is not fetched again
    ClvpModelForConditionalGeneration.from_pretrained(local)


@pytest.mark.slow
def test_four_processes_get_every_object_once(
    bucket_folder: str, relay: Relay, enter_node: Enter, tmp_path: Path
) -> None:
    described = describe_checkpoint(relay.uri(bucket_folder))
    relay.gets.clear()
    cache = enter_node("worker")
    local = fetch_at_once(described, tmp_path / "log")
    assert local == [str(cache / "checkpoints" / described.digest)] * 4
    assert relay.gets == dict.fromkeys(described.files, 1)
    assert not (tmp_path / "log").exists()  # digests come with the download
    assert list((cache / "partial").iterdir()) == []


def test_an_object_that_was_replaced(
    bucket_folder: str, server: S3Server, relay: Relay, enter_node: Enter, folder: Path
) -> None:
    described = describe_checkpoint(relay.uri(bucket_folder))
    replace_object(server, f"{bucket_folder}/merges.txt", (folder / "merges.txt").read_bytes() + b"\n")
    assert fetch(described)  # the driver's node has the old one
    cache = enter_node("worker")
    with pytest.raises(RunError, match=r"merges\.txt is not the file that the run began with"):
        fetch(described)
    assert list((cache / "partial").iterdir()) == []
    enter_node("driver")
    later = describe_checkpoint(relay.uri(bucket_folder))
    assert {name for name in later.files if later.files[name] != described.files[name]} == {"merges.txt"}


def test_objects_that_are_not_there(
    bucket_folder: str, server: S3Server, relay: Relay, enter_node: Enter
) -> None:
    described = describe_checkpoint(relay.uri(bucket_folder))
    server.client().delete_object(Bucket=BUCKET, Key=f"{bucket_folder}/{WEIGHTS}")
    enter_node("worker")
    with pytest.raises(RunError, match=f"{WEIGHTS} is missing"):
        fetch(described)
    with pytest.raises(RunError, match="holds no weights"):
        describe_checkpoint(relay.uri(bucket_folder))
    with pytest.raises(RunError, match=r"no-such-folder.* cannot be used"):
        describe_checkpoint(relay.uri("no-such-folder"))
    with pytest.raises(RunError, match=r"no-such-bucket.* cannot be used"):
        describe_checkpoint(relay.uri("model").replace(BUCKET, "no-such-bucket"))


@pytest.mark.slow
def test_a_download_that_ends_early(bucket_folder: str, relay: Relay, enter_node: Enter) -> None:
    described = describe_checkpoint(relay.uri(bucket_folder))
    cache = enter_node("worker")
    relay.cut = WEIGHTS
    with pytest.raises(RunError, match=r"the model .* cannot be used"):
        fetch(described)
    assert list((cache / "partial").iterdir()) == []
    assert not (cache / "checkpoints").exists()
    relay.cut = None
    assert fetch(described) == str(cache / "checkpoints" / described.digest)


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_downloads(
    bucket_folder: str, relay: Relay, enter_node: Enter, tmp_path: Path
) -> None:
    described = describe_checkpoint(relay.uri(bucket_folder))
    cache = enter_node("worker")
    relay.stalled = WEIGHTS
    process = start_process(described, tmp_path / "log")
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert relay.reached.wait(60)
    process.kill()
    process.communicate()
    relay.stalled = None
    (left,) = (cache / "partial").iterdir()
    (cache / "partial" / "of-another-uri").mkdir()
    assert list(left.iterdir())
    assert fetch(described) == str(cache / "checkpoints" / described.digest)
    assert list((cache / "partial").iterdir()) == []


@pytest.mark.slow
def test_a_full_disk(bucket_folder: str, relay: Relay, enter_node: Enter, tmp_path: Path) -> None:
    """Played by a limit on the size of files, which fails a write in the same way."""
    described = describe_checkpoint(relay.uri(bucket_folder))
    cache = enter_node("worker")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
    process = start_process(described, tmp_path / "log", limit)
    error = process.communicate("\n", timeout=120)[1]
    assert error.splitlines()[-1].startswith("pipeline.errors.RunError: cannot write ")
    assert "make room, or name another folder in CLVP_CACHE" in error
    assert list((cache / "partial").iterdir()) == []


def test_a_damaged_cache_is_renewed(bucket_folder: str, relay: Relay, enter_node: Enter) -> None:
    described = describe_checkpoint(relay.uri(bucket_folder))
    local = Path(fetch(described))
    with open(local / WEIGHTS, "r+b") as file:
        file.truncate(1000)
    fetch.cache_clear()
    assert fetch(described) == str(local)
    assert sha256(local / WEIGHTS) == described.files[WEIGHTS]


# ---- the cache ----


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLVP_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("CLVP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "clvp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" / ".cache" / "clvp"
    monkeypatch.setenv("HOME", "/dev/null")  # as good as a home that cannot be written
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder() == tmp_path / f"clvp-{os.getuid()}"
    monkeypatch.setenv("CLVP_CACHE", "/dev/null/x")
    with pytest.raises(RunError, match="CLVP_CACHE"):
        cache_folder()
