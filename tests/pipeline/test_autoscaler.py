"""GPUs that a launcher's cluster may grow to."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config

from pipeline.stream.autoscaler import launcher_gpus, most_gpus

ROOT = Path(__file__).parents[2]


def config(max_workers: int, **types: tuple[int, int | None]) -> dict[str, Any]:
    """Types as (GPUs, max_workers)."""
    return {
        "max_workers": max_workers,
        "head_node_type": "head",
        "available_node_types": {
            name: {"resources": {"CPU": 4} | ({"GPU": gpus} if gpus else {})}
            | ({} if limit is None else {"max_workers": limit})
            for name, (gpus, limit) in types.items()
        },
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (config(8, head=(0, 0)), 0),
        (config(8, head=(0, 0), cpu=(0, 8)), 0),
        (config(8, head=(1, 0), cpu=(0, 8)), 1),
        (config(24, head=(0, 0), cpu=(0, 8), gpu=(1, 16)), 16),
        (config(3, head=(0, 0), cpu=(0, 8), gpu=(1, 16)), 3),
        (config(5, head=(2, 0), small=(1, 9), large=(8, 2)), 2 + 2 * 8 + 3),
        (config(4, head=(0, 0), gpu=(4, None)), 16),
    ],
)
def test_the_most_gpus_at_one_time(given: dict[str, Any], expected: int) -> None:
    assert most_gpus(given) == expected


def test_the_file_that_the_launcher_leaves_on_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert launcher_gpus() is None
    shipped = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(shipped))
    types = shipped["available_node_types"]
    assert launcher_gpus() == types["gpu_worker"]["max_workers"] * types["gpu_worker"]["resources"]["GPU"] > 0


@pytest.mark.parametrize(
    "text",
    ["", "just words", "[1, 2]", "a: [", "max_workers: many\navailable_node_types: {}", "max_workers: 2"],
)
def test_a_file_of_another_kind_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert launcher_gpus(path) is None
    assert launcher_gpus(tmp_path) is None  # a folder
