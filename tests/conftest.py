"""One torch thread: the tests' tensors are small, and idle threads that spin cost more than they bring."""

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a Ray instance run last, so that it stands beside no other."""
    items.sort(key=lambda item: "ray_instance" in getattr(item, "fixturenames", ()))
