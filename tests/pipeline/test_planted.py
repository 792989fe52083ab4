"""Folders and files that somebody else has put where a run would write or believe them."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.cache import cache_folder
from pipeline.errors import RunError
from pipeline.output.folder import OutputFolder
from pipeline.output.lock import exclusive
from pipeline.output.publish import Files, recover
from pipeline.stream import workers


@pytest.mark.parametrize(
    "name", ["_lock", "_manifest", "_scratch", "_parts", "_retried", "data", "errors", "metrics"]
)
def test_a_link_in_an_output_leads_nowhere(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.parquet").write_text("years of work")
    output = tmp_path / "out"
    output.mkdir()
    (output / name).symlink_to(mine / "thesis.parquet" if name == "_lock" else mine)
    folder = OutputFolder(str(output))

    def run() -> None:
        with exclusive(folder):
            recover(Files(folder))

    with pytest.raises(RunError, match=rf"{name} is a symbolic link"):
        run()
    assert (mine / "thesis.parquet").read_text() == "years of work"
    (output / name).unlink()
    (tmp_path / "link").symlink_to(output)
    with exclusive(OutputFolder(str(tmp_path / "link"))):  # the output itself may be reached by one
        pass


def test_the_mark_of_a_starting_actor_is_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    context = SimpleNamespace(get_actor_id=lambda: "actor")
    monkeypatch.setattr(workers.ray, "get_runtime_context", lambda: context)
    (tmp_path / "mine").write_bytes(b"m")
    (tmp_path / "clvp-start-actor").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="clvp-start-actor"), workers._counted_start("the model"):
        raise AssertionError("loaded")
    assert (tmp_path / "mine").read_bytes() == b"m"
    with workers._counted_start("the model"):
        assert (tmp_path / "clvp-start-actor").stat().st_size == 1


@pytest.fixture
def spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache is when there is no home."""
    monkeypatch.delenv("CLVP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"clvp-{os.getuid()}"


def test_the_cache_among_temporary_files_is_the_users_alone(spare: Path) -> None:
    assert cache_folder() == spare
    assert spare.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == spare


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707, 0o1777])
def test_a_cache_that_others_may_enter_is_refused(spare: Path, mode: int) -> None:
    spare.mkdir()
    spare.chmod(mode)
    with pytest.raises(OSError, match=rf"{spare} is a link, or others than you .*CLVP_CACHE"):
        cache_folder()


def test_a_cache_that_is_a_link_is_refused(spare: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    spare.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="is a link"):
        cache_folder()


def test_a_cache_of_another_user_is_refused(
    spare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = os.getuid() + 1
    (tmp_path / f"clvp-{other}").mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(OSError, match="others than you own it"):
        cache_folder()
