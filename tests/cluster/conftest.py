"""One undisturbed run for all tests that disturb one."""

from collections.abc import Iterator

import pytest

from tests.cluster.workload import Workload, prepared_workload


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workload]:
    with prepared_workload(tmp_path_factory.mktemp("workload")) as prepared:
        yield prepared
