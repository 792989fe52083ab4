"""A Ray instance of the tests' own: two CPUs, two logical GPUs, a folder of its own."""

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="module")
def ray_instance() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="clvp-ray-", dir="/tmp")  # short: Ray puts sockets below it
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "600000")
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
