"""One torch thread: the tests' tensors are small, and idle threads that spin cost more than they bring.

What nodes remember between runs lies in a folder of this process, also for those that it starts.
"""

import os
import tempfile

import pytest
import torch

torch.set_num_threads(1)
_cache = tempfile.TemporaryDirectory(prefix="clvp-tests-")
os.environ["CLVP_CACHE"] = _cache.name


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tests that start Ray share a process, beside another for all others (`--dist loadgroup`)."""
    if "ray_instance" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.xdist_group("ray"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They begin first, and those that share a Ray instance last of them: it stands beside no other."""
    items.sort(
        key=lambda item: (
            item.get_closest_marker("xdist_group") is None,
            "ray_instance" in getattr(item, "fixturenames", ()),
        )
    )
