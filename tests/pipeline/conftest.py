"""What tests share: a checkpoint, an S3 server, a Ray instance, and an undisturbed run to compare with."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clvp.random_checkpoint import write_random_checkpoint
from tests.s3_server import CREDENTIALS, S3Server, s3_server
from tests.soak.output import Stored
from tests.soak.soak import run_without_ray
from tests.soak.workload import Workload, make_workload


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A server for all tests, with the credentials in this process' environment: use keys of your own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with s3_server() as server:
            yield server


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """24 rows, 9 of them bad."""
    return make_workload(tmp_path_factory.mktemp("workload"), rows=24)


@pytest.fixture(scope="session")
def undisturbed(workload: Workload, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """What a run of the workload stores when nothing happens to it."""
    return run_without_ray(workload, str(tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture(scope="session")
def ray_instance() -> Iterator[None]:
    """A Ray instance of the tests' own: two CPUs, two logical GPUs, a folder of its own."""
    import ray  # seconds, which the tests without it need not wait

    folder = tempfile.mkdtemp(prefix="clvp-ray-", dir="/tmp")  # short: Ray puts sockets below it
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "600000")
        patch.setenv("RAY_worker_niceness", "0")  # of 15 they wait for whatever else this machine does
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=256 << 20,
            _temp_dir=folder,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}},
        )
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
