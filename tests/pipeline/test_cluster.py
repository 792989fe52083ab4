import pytest

from clvp.sampling import EngineConfig
from pipeline.settings import ExecutionSettings, Pool
from pipeline.stream.cluster import Cluster, summary
from pipeline.stream.stream import rows_per_block


def test_the_summary_of_an_error_leaves_tracebacks_out() -> None:
    text = "ray::prepare() (pid=1)\n  File x\nTraceback (most recent call last)\nThe node died.\nIt was lost."
    assert summary(RuntimeError(text)) == "The node died. It was lost."
    assert summary(RuntimeError("")) == "RuntimeError"


def test_pools_follow_the_cluster() -> None:
    laptop, server = Cluster(2, 0), Cluster(32, 4)
    assert laptop.pool(Pool(), 0.75)["num_gpus"] == 0
    assert laptop.pool(Pool(), 0.75)["compute"].max_size == 1
    assert server.pool(Pool(), 0.75)["num_gpus"] == 0.75
    assert server.pool(Pool(), 0.75)["compute"].max_size == 4
    assert server.pool(Pool(), 0.75)["max_restarts"] == -1
    assert server.pool(Pool(), 0.75)["num_cpus"] == 0, "audio tasks cannot keep it from its GPU"
    assert server.pool(Pool(1, 2, num_gpus=1), 0.75)["compute"].max_size == 2
    assert server.pool(Pool(num_gpus=0), 0.75)["compute"].max_size == 1
    assert Cluster(0, 0).pool(Pool(2, 8, num_gpus=1), 0.75)["compute"].max_size == 8, "GPUs may come later"


def test_reservations_fit_on_the_smallest_machines() -> None:
    for cpus in (1.0, 2.0):
        cluster = Cluster(cpus, 0)
        actors = cluster.pool(Pool(), 0.75)["num_cpus"] + cluster.pool(Pool(), 0.25)["num_cpus"]
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
