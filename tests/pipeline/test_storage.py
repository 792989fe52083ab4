import glob
import os
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import storage


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")


def test_expand_file_folder_and_glob(tmp_path: Path) -> None:
    for name in ("b.csv", "a.jsonl", "deep/c.csv", "deep/er/d.csv", "notes.txt", "_hidden/e.csv", ".f.csv"):
        touch(tmp_path / name)

    def names(pattern: str) -> list[str]:
        found = storage.expand(str(tmp_path / pattern))
        return [os.path.relpath(path, tmp_path) for path in found]

    assert names("") == ["a.jsonl", "b.csv", "deep/c.csv", "deep/er/d.csv", "notes.txt"]
    assert names("*.csv") == ["b.csv"]
    assert names("*/*.csv") == ["deep/c.csv"]
    assert names("**/*.csv") == ["b.csv", "deep/c.csv", "deep/er/d.csv"]
    assert names("[ab].*") == ["a.jsonl", "b.csv"]
    assert names("deep/?.csv") == ["deep/c.csv"]
    assert names("notes.txt") == ["notes.txt"], "a file that is named is taken whatever its suffix"
    for nothing in ("missing.csv", "*.parquet", "deep/x*"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            names(nothing)


def test_expand_takes_a_name_with_brackets_in_a_parent_literally(tmp_path: Path) -> None:
    touch(tmp_path / "a b#c" / "m%20.csv")
    assert storage.expand(str(tmp_path / "a b#c")) == [str(tmp_path / "a b#c" / "m%20.csv")]


@pytest.mark.parametrize(
    ("folder", "path", "expected"),
    [
        ("/data", "clips/a.wav", "/data/clips/a.wav"),
        ("/data", "/other/a.wav", "/other/a.wav"),
        ("/data", "s3://bucket/a.wav", "s3://bucket/a.wav"),
        ("s3://bucket/folder", "a.wav", "s3://bucket/folder/a.wav"),
        ("s3://bucket/folder/", "a b.wav", "s3://bucket/folder/a b.wav"),
        ("s3://bucket/f?endpoint_override=h:1&scheme=http", "a.wav", "s3://bucket/f/a.wav?endpoint_override=h:1&scheme=http"),
    ],
)  # fmt: skip
def test_join(folder: str, path: str, expected: str) -> None:
    assert storage.join(folder, path) == expected


def test_parent_and_name_keep_the_notation() -> None:
    assert storage.parent("/data/m.csv") == "/data"
    assert storage.parent("s3://b/x/m.csv") == "s3://b/x"
    assert storage.parent("s3://b/x/m.csv?scheme=http") == "s3://b/x?scheme=http"
    assert storage.name_of("s3://b/x/m.csv?scheme=http") == "m.csv"
    assert storage.name_of("/data/what?.csv") == "what?.csv"
    assert storage.absolute("file:///data/m.csv") == "/data/m.csv"


def test_other_schemes_go_through_fsspec() -> None:
    uri = "memory://folder/a.bin"
    storage.write_atomically(uri, b"abc", "memory://folder/_scratch")
    assert storage.read_bytes(uri) == b"abc"
    assert storage.list_names("memory://folder", ".bin") == ["a.bin"]


def test_atomic_write_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target, scratch = tmp_path / "new" / "file", tmp_path / "_scratch"
    for content in (b"first", b"second"):
        storage.write_atomically(str(target), content, str(scratch))
        assert target.read_bytes() == content
    assert os.listdir(target.parent) == ["file"]
    assert os.listdir(scratch) == []


def test_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        storage.write_atomically(str(target), b"new", str(tmp_path / "_scratch"))
    assert target.read_bytes() == b"old"


def test_delete_and_list_of_what_does_not_exist(tmp_path: Path) -> None:
    storage.delete_files([str(tmp_path / "nothing")])
    assert storage.list_names(str(tmp_path / "nowhere"), "") == []


def test_links_in_circles_and_what_is_no_file_are_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "_hidden", "b/.hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.csv").write_text("x")
    for name in ("a/1", "a/2", "b/3"):
        (tmp_path / name).symlink_to(tmp_path)  # twice in one folder: 2 ** 40 paths for who follows them
    (tmp_path / "a" / "link.csv").symlink_to(tmp_path / "b" / "m.csv")
    (tmp_path / "a" / "gone.csv").symlink_to("nowhere.csv")
    (tmp_path / "a" / "self.csv").symlink_to("self.csv")
    (tmp_path / "a" / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "a" / "fifo.csv")
    expected = [str(tmp_path / name) for name in ("a/link.csv", "a/m.csv", "b/m.csv")]
    assert storage.expand(str(tmp_path)) == expected
    assert storage.expand(f"{tmp_path}/**/*.csv") == expected
    for name in ("a/fifo.csv", "a/folder.csv", "a/self.csv", "a/gone.csv"):
        with pytest.raises(FileNotFoundError, match="no such file, or no"):
            storage.expand(str(tmp_path / name))


# ---- globs ----


class Listed(MemoryFileSystem):
    """Remembers the folders that were listed."""

    protocol = "listed"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    folders: ClassVar[set[str]] = set()
    find = AbstractFileSystem.find  # by listing, folder by folder

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("listed://", "memory://"))

    def ls(self, path: str, detail: bool = True, **options: object) -> list:
        Listed.folders.add(self._strip_protocol(path))
        return super().ls(path, detail, **options)


@pytest.mark.parametrize(
    ("pattern", "expected", "listed"),
    [
        ("/d/*.csv", ["/d/m.csv"], {"/d"}),
        ("/d/*/m.csv", ["/d/a/m.csv", "/d/b/m.csv"], {"/d"}),
        ("/d/a/?/*.csv", ["/d/a/x/m.csv"], {"/d/a", "/d/a/x"}),
        ("/d/[b]*/*/*.csv", ["/d/b/x/m.csv"], {"/d", "/d/b", "/d/b/x"}),
        ("/d/a/**/*.csv", ["/d/a/m.csv", "/d/a/x/m.csv"], {"/d/a", "/d/a/x"}),
    ],
)
def test_a_glob_lists_only_what_it_can_match(pattern: str, expected: list[str], listed: set[str]) -> None:
    fsspec.register_implementation("listed", Listed, clobber=True)
    for name in ("m.csv", "a/m.csv", "b/m.csv", "a/x/m.csv", "b/x/m.csv", "a.csv/none.txt"):
        Listed().pipe(f"/d/{name}", b"x")
    Listed.folders.clear()
    assert storage.expand(f"listed:/{pattern}") == [f"listed:/{name}" for name in expected]
    # fsspec asks for the folder above to learn what a name is; none may be listed for what lies below it.
    assert Listed.folders & {"/d", "/d/a", "/d/b", "/d/a/x", "/d/b/x", "/d/a.csv"} <= listed | {"/d"}


def test_a_local_glob_neither_walks_nor_follows_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("d/m.csv", "d/a/m.csv", "elsewhere/m.csv"):
        touch(tmp_path / name)
    (tmp_path / "d" / "out").symlink_to(tmp_path / "elsewhere")
    assert storage.expand(f"{tmp_path}/d/**/*.csv") == [
        str(tmp_path / "d" / name) for name in ("a/m.csv", "m.csv")
    ]

    def walk(*_: object, **__: object) -> None:
        raise AssertionError("a pattern without ** needs no walk")

    monkeypatch.setattr(os, "walk", walk)
    assert storage.expand(f"{tmp_path}/d/*.csv") == [str(tmp_path / "d" / "m.csv")]
    assert storage.expand(f"{tmp_path}/?/*/m.csv") == [
        str(tmp_path / "d" / name) for name in ("a/m.csv", "out/m.csv")
    ]


def test_globs_mean_what_pythons_mean(tmp_path: Path) -> None:
    for name in ("m.csv", "a/m.csv", "a/b/m.csv", "a/b/c/n.csv", "ab/b/m.csv", "c/[x]/m.csv", "a/.h/m.csv"):
        touch(tmp_path / name)
    patterns = (
        "*.csv */*.csv a*/b/*.csv */b/m.csv **/*.csv a/**/b/*.csv a/** ** ?/[bc]/*.csv */[[]x]/* */*/*/*"
    )
    for pattern in patterns.split():
        found = glob.glob(f"{tmp_path}/{pattern}", recursive=True)
        expected = sorted({path for path in found if os.path.isfile(path)})
        assert storage.expand(f"{tmp_path}/{pattern}") == expected, pattern
