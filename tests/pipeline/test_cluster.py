import pytest

from clvp.sampling import EngineConfig
from pipeline.cluster import Cluster, readable_error
from pipeline.errors import ManifestError, RunError
from pipeline.graph import rows_per_block
from pipeline.settings import ExecutionSettings, Pool

USER_CODE = """\
ray::MapBatches(read)() (pid=1, ip=10.0.0.1)
  File "/x/read.py", line 7, in read
    raise {error}
{module}{error}: {message}

The above exception was the direct cause of the following exception:

ray::MapBatches(read)() (pid=1, ip=10.0.0.1)
ray.exceptions.UserCodeException: UDF failed to process a data block.
Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).
To change retry attempts, configure things.
"""


@pytest.mark.parametrize(
    ("module", "error", "expected", "message"),
    [
        ("pipeline.errors.", "ManifestError", ManifestError, "m.csv has changed"),
        ("clvp.checkpoint.", "CheckpointError", RunError, "m.csv has changed"),
        ("", "KeyError", RunError, "a stage failed: KeyError: m.csv has changed"),
    ],
)
def test_the_first_exception_is_the_message(module: str, error: str, expected: type, message: str) -> None:
    found = readable_error(USER_CODE.format(module=module, error=error, message="m.csv has changed"))
    assert type(found) is expected
    assert str(found) == message


def test_a_message_that_says_little_is_kept_whole() -> None:
    assert str(readable_error("The worker died.\nIts node was lost.")) == (
        "a stage failed: The worker died.\nIts node was lost."
    )
    assert str(readable_error("")) == "a stage failed: "


def test_pools_follow_the_cluster() -> None:
    laptop, server = Cluster(2, 0), Cluster(32, 4)
    assert laptop.pool(Pool(), 0.75, 8)["num_gpus"] == 0
    assert laptop.pool(Pool(), 0.75, 8)["compute"].max_size == 1
    assert laptop.pool(Pool(), 0.75, 8)["batch_size"] is None
    assert server.pool(Pool(), 0.75, 8)["num_gpus"] == 0.75
    assert server.pool(Pool(), 0.75, 8)["compute"].max_size == 4
    assert server.pool(Pool(), 0.75, 8)["batch_size"] == 8
    assert server.pool(Pool(1, 2, num_gpus=1), 0.75, 8)["compute"].max_size == 2
    assert server.pool(Pool(num_gpus=0), 0.75, 8)["compute"].max_size == 1
    assert Cluster(0, 0).pool(Pool(2, 8, num_gpus=1), 0.75, 8)["compute"].max_size == 8, "GPUs may come later"


def test_reservations_fit_on_the_smallest_machines() -> None:
    for cpus in (1.0, 2.0):
        cluster = Cluster(cpus, 0)
        actors = cluster.pool(Pool(), 0.75, 8)["num_cpus"] + cluster.pool(Pool(), 0.25, 8)["num_cpus"]
        assert actors + cluster.task_cpus + 0.25 <= cpus
    assert Cluster(0, 0).task_cpus == 1, "a cluster that starts with nothing asks for whole cores"


@pytest.mark.parametrize(
    ("execution", "candidates", "cluster", "rows", "expected"),
    [
        (ExecutionSettings(rows_per_block=5), 16, Cluster(2, 0), 1000, 5),
        (ExecutionSettings(), 16, Cluster(2, 0), 1000, 8),
        (ExecutionSettings(), 16, Cluster(2, 0), 12, 3),
        (ExecutionSettings(), 256, Cluster(2, 0), 1000, 1),
        (ExecutionSettings(), 16, Cluster(8, 1), 100_000, 128),
        (ExecutionSettings(), 1, Cluster(8, 1), 100_000, 256),
        (ExecutionSettings(), 256, Cluster(64, 8), 100_000, 8),
        (ExecutionSettings(engine=EngineConfig(lanes=512)), 16, Cluster(8, 1), 100_000, 256),
        (ExecutionSettings(), 16, Cluster(64, 8), 64, 2),
    ],
)
def test_rows_per_block(
    execution: ExecutionSettings, candidates: int, cluster: Cluster, rows: int, expected: int
) -> None:
    assert rows_per_block(execution, candidates, cluster, rows) == expected
