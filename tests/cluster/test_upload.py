"""What `ray job submit --working-dir .` uploads: the three packages and little else, under a megabyte."""

import zipfile
from pathlib import Path

from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[2]


def test_the_working_directory_is_small_and_complete(tmp_path: Path) -> None:
    archive = tmp_path / "working_dir.zip"
    create_package(str(ROOT), archive, include_gitignore=True)
    with zipfile.ZipFile(archive) as content:
        names = {name for name in content.namelist() if not name.endswith("/")}
    sources = {
        str(path.relative_to(ROOT))
        for package in ("clvp", "pipeline", "jobs")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= names
    assert {name.split("/")[0] for name in names if "/" in name} == {"clvp", "pipeline", "jobs"}
    assert archive.stat().st_size < 1_000_000
