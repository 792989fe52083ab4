"""What `ray job submit --working-dir .` uploads: the code and the pinned versions, under a megabyte."""

import shutil
import zipfile
from pathlib import Path

from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[2]
PACKAGES = ("clvp", "pipeline", "jobs")
BESIDE = {"constraints.txt", "pyproject.toml"}  # the runtime environment refers to the first


DEMO = Path("clvp/assets/demo")  # 23 MB; a cluster's image has the package, and it


def sources(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for package in PACKAGES
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.is_relative_to(folder / DEMO)
    }


def upload(folder: Path, archive: Path) -> set[str]:
    create_package(str(folder), archive, include_gitignore=True)
    with zipfile.ZipFile(archive) as content:
        return {name for name in content.namelist() if not name.endswith("/")}


def test_the_working_directory_is_small_and_complete(tmp_path: Path) -> None:
    assert upload(ROOT, tmp_path / "package.zip") == sources(ROOT) | BESIDE
    assert (tmp_path / "package.zip").stat().st_size < 1_000_000


def test_data_in_the_checkout_stays_there(tmp_path: Path) -> None:
    """Whatever it is called; Ray would refuse to upload more than 100 MiB."""
    checkout = tmp_path / "checkout"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, checkout / package)
    for name in (*BESIDE, ".rayignore", ".gitignore"):
        shutil.copy(ROOT / name, checkout)
    for name in ("clips/a.wav", "my-run/data/part.parquet", "checkpoint/model.safetensors", "texts.jsonl"):
        (checkout / name).parent.mkdir(exist_ok=True, parents=True)
        (checkout / name).write_bytes(bytes(1000))
    assert upload(checkout, tmp_path / "package.zip") == sources(checkout) | BESIDE
