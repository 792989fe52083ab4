import pytest

from clvp.sampling import EngineConfig
from pipeline.errors import RunError
from pipeline.settings import ExecutionSettings, Pool
from pipeline.stream import cluster as module
from pipeline.stream.cluster import Cluster, connected, summary
from pipeline.stream.stream import rows_per_block


def test_the_summary_of_an_error_leaves_tracebacks_out() -> None:
    text = "ray::prepare() (pid=1)\n  File x\nTraceback (most recent call last)\nThe node died.\nIt was lost."
    assert summary(RuntimeError(text)) == "The node died. It was lost."
    assert summary(RuntimeError("")) == "RuntimeError"


TIMED_OUT = Exception("The current node timed out during startup. This could happen because of this or that.")
UNREACHABLE = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")
MISMATCH = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9\n    Python: 3.12\n")


class Starts:
    """Stands for Ray: starts that fail in these ways, and then one that does not."""

    def __init__(self, patch: pytest.MonkeyPatch, failures: list[BaseException]) -> None:
        self.failures, self.tried = failures, 0
        patch.setattr(module.ray, "is_initialized", lambda: False)
        patch.setattr(module.ray, "init", self.init)
        patch.setattr(module.ray, "shutdown", lambda: None)
        patch.setattr(module, "_watch", lambda *_: None)

    def init(self, **_: object) -> None:
        self.tried += 1
        if self.failures:
            raise self.failures.pop(0)


def test_a_start_that_times_out_is_tried_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = Starts(monkeypatch, [TIMED_OUT])
    with connected(worker_logs=True):
        assert ray.tried == 2
    ray = Starts(monkeypatch, [TIMED_OUT, TIMED_OUT])
    with (
        pytest.raises(RunError, match=r"^Ray could not be started: .* timed out .* memory") as refused,
        connected(worker_logs=True),
    ):
        pass
    assert ray.tried == 2
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("failure", "cause", "hint"),
    [
        (UNREACHABLE, None, "is the cluster of RAY_ADDRESS=10.0.0.1:6379 up"),
        (UNREACHABLE, MISMATCH, "install the cluster's versions of Ray and Python"),
        (MISMATCH, None, "install the cluster's versions of Ray and Python"),
        (ValueError("address"), None, "is the cluster of RAY_ADDRESS=10.0.0.1:6379 up"),
        (KeyError("any"), None, "is the cluster of RAY_ADDRESS=10.0.0.1:6379 up"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, cause: Exception | None, hint: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    failure.__cause__ = cause
    ray = Starts(monkeypatch, [failure])
    with pytest.raises(RunError, match=r"^Ray could not be joined: ") as refused, connected(worker_logs=True):
        pass
    assert ray.tried == 1
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)


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
        (ExecutionSettings(), 16, Cluster(8, 1), 100_000, 64),
        (ExecutionSettings(), 1, Cluster(8, 1), 100_000, 256),
        (ExecutionSettings(), 256, Cluster(64, 8), 100_000, 4),
        (ExecutionSettings(engine=EngineConfig(lanes=512)), 16, Cluster(8, 1), 100_000, 128),
        (ExecutionSettings(), 16, Cluster(64, 8), 64, 2),
    ],
)
def test_rows_per_block(
    execution: ExecutionSettings, candidates: int, cluster: Cluster, rows: int, expected: int
) -> None:
    assert rows_per_block(execution, candidates, cluster, rows) == expected
