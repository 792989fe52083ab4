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

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file

from clvp import (
    ClvpConditioningEncoder,
    ClvpFeatureExtractor,
    ClvpForCausalLM,
    ClvpModelForConditionalGeneration,
    ClvpTokenizer,
)
from clvp.checkpoint import CheckpointSource
from pipeline.cache import cache_folder
from pipeline.checkpoint import Checkpoint, describe_checkpoint, fetch
from pipeline.errors import RunError
from tests.pipeline.s3_relay import Relay, s3_relay
from tests.s3_server import BUCKET, S3Server

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


# ---- folders ----


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
    described = describe_checkpoint(str(folder))
    (folder / name).unlink()
    with pytest.raises(RunError, match=name):
        describe_checkpoint(str(folder))
    with pytest.raises(RunError, match=name):  # on a node that lacks it
        fetch(described)


def test_a_model_that_is_nothing_is_one_sentence_without_credentials(
    enter_node: Enter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    query = "?endpoint_override=127.0.0.1:1&scheme=http&region=x&session_token=secret"
    for location in (
        "/no/such/folder",
        "file:///no/such/folder",
        "magic://bucket/model",
        "s3://me:secret@b/m",
    ):
        with pytest.raises(RunError) as refused:
            describe_checkpoint(location + query * location.startswith("s3"))
        shown = location.replace("me:secret@", "")
        assert str(refused.value).startswith(f"the model {shown} cannot be used: ")
        assert "secret" not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_an_index_that_points_elsewhere(folder: Path, enter_node: Enter) -> None:
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
    index = {"weight_map": {"a": f"../{WEIGHTS}"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RunError, match="lies outside"):
        describe_checkpoint(str(folder))


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
            raise EntryNotFoundError(name)
        path = hub / str(revision) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, path)
        if revision == new and name == WEIGHTS:
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
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


@pytest.fixture
def relay(s3: S3Server) -> Iterator[Relay]:
    with s3_relay(s3) as relay:
        yield relay


@pytest.fixture
def bucket_folder(s3: S3Server, folder: Path, tmp_path: Path) -> str:
    """Key of a checkpoint in the bucket."""
    for path in folder.iterdir():
        s3.client().upload_file(str(path), BUCKET, f"{tmp_path.name}/model/{path.name}")
    return f"{tmp_path.name}/model"


FETCH = """
    import sys
    from pipeline.checkpoint import Checkpoint, fetch
    location, version, *files = sys.argv[1:]
    described = Checkpoint(location, dict(file.split("=") for file in files), version)
    print("ready", flush=True)
    sys.stdin.readline()
    print(fetch(described), flush=True)
"""


def start_process(described: Checkpoint, limit: str = "") -> subprocess.Popen[str]:
    """A process that is ready to fetch and waits for a line."""
    files = [f"{name}={digest}" for name, digest in described.files.items()]
    process = subprocess.Popen(
        [sys.executable, "-c", limit + textwrap.dedent(FETCH), described.location, described.version, *files],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def leftovers(cache: Path) -> list[str]:
    """What a cache holds but for whole checkpoints and locks."""
    return [path.name for path in (cache / "checkpoints").iterdir() if path.suffix == ".partial"]


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
def test_four_processes_get_every_object_once(bucket_folder: str, relay: Relay, enter_node: Enter) -> None:
    described = describe_checkpoint(relay.uri(bucket_folder))
    relay.gets.clear()
    cache = enter_node("worker")
    processes = [start_process(described) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120) for process in processes]
    assert [out for out, _ in answers] == [f"{cache / 'checkpoints' / described.version}\n"] * 4, answers
    assert relay.gets == dict.fromkeys(described.files, 1)
    assert leftovers(cache) == []


def test_an_object_that_was_replaced(
    bucket_folder: str, s3: S3Server, relay: Relay, enter_node: Enter, folder: Path
) -> None:
    described = describe_checkpoint(relay.uri(bucket_folder))
    content = (folder / "merges.txt").read_bytes() + b"\n"
    s3.client().put_object(Bucket=BUCKET, Key=f"{bucket_folder}/merges.txt", Body=content)
    assert fetch(described)  # the driver's node has the old one
    cache = enter_node("worker")
    with pytest.raises(RunError, match=r"merges\.txt: not the files that the run began with"):
        fetch(described)
    assert leftovers(cache) == []
    enter_node("driver")
    later = describe_checkpoint(relay.uri(bucket_folder))
    assert {name for name in later.files if later.files[name] != described.files[name]} == {"merges.txt"}


def test_objects_that_are_not_there(
    bucket_folder: str, s3: S3Server, relay: Relay, enter_node: Enter
) -> None:
    described = describe_checkpoint(relay.uri(bucket_folder))
    s3.client().delete_object(Bucket=BUCKET, Key=f"{bucket_folder}/{WEIGHTS}")
    enter_node("worker")
    with pytest.raises(RunError, match=f"holds no {WEIGHTS}"):
        fetch(described)
    with pytest.raises(RunError, match=f"holds no {WEIGHTS}"):
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
    assert leftovers(cache) == []
    assert not (cache / "checkpoints" / described.version).exists()
    relay.cut = None
    assert fetch(described) == str(cache / "checkpoints" / described.version)


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_downloads(
    bucket_folder: str, relay: Relay, enter_node: Enter
) -> None:
    described = describe_checkpoint(relay.uri(bucket_folder))
    cache = enter_node("worker")
    relay.stalled = WEIGHTS
    process = start_process(described)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert relay.reached.wait(60)
    process.kill()
    process.communicate()
    relay.stalled = None
    assert leftovers(cache) == [f"{described.version}.partial"]
    assert fetch(described) == str(cache / "checkpoints" / described.version)
    assert leftovers(cache) == []


@pytest.mark.slow
def test_a_full_disk(bucket_folder: str, relay: Relay, enter_node: Enter) -> None:
    """Played by a limit on the size of files, which fails a write in the same way."""
    described = describe_checkpoint(relay.uri(bucket_folder))
    cache = enter_node("worker")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
    error = start_process(described, limit).communicate("\n", timeout=120)[1]
    assert error.splitlines()[-1].startswith("pipeline.errors.RunError: the model ")
    assert "make room, or name another folder in CLVP_CACHE" in error
    assert leftovers(cache) == []


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
    with pytest.raises(OSError, match="CLVP_CACHE"):
        cache_folder()
