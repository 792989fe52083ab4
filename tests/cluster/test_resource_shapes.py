"""What the stages ask for, given to the scheduler of Ray's autoscaler: it adds the kind of node meant."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from pipeline.rows.memory import reading_memory
from pipeline.settings import Pool, ResultSettings, Run
from pipeline.stages import CLIPS_PER_ROW, gpu_shares, stages_of
from pipeline.stream.cluster import Cluster
from pipeline.stream.stream import MAX_ROWS_PER_BLOCK

ROOT = Path(__file__).parents[2]
GIB = 1 << 30

Shape = dict[str, float]


def launcher_types() -> dict[str, NodeTypeConfig]:
    """Of cluster.yaml; memory as the launcher finds it out: 70% of what the type of instance has."""
    memory = {"m6i.4xlarge": 64, "g6e.2xlarge": 64}
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    types = {}
    for name, node in config["available_node_types"].items():
        if name != config["head_node_type"]:
            gib = memory[node["node_config"]["InstanceType"]]
            resources = node["resources"] | {"memory": int(0.7 * gib * GIB)}
            types[name] = NodeTypeConfig(name, node["min_workers"], node["max_workers"], resources=resources)
    return types


def kuberay_types() -> dict[str, NodeTypeConfig]:
    """Of rayjob.yaml, under the names of cluster.yaml."""
    manifest = yaml.safe_load((ROOT / "examples/kuberay/rayjob.yaml").read_text())
    types = {}
    for group in manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        resources = {
            "CPU": float(group["rayStartParams"].get("num-cpus", limits["cpu"])),
            "memory": int(limits["memory"].removesuffix("Gi")) * GIB,
        }
        if "nvidia.com/gpu" in limits:
            resources["GPU"] = float(limits["nvidia.com/gpu"])
        name = group["groupName"].replace("-", "_")
        types[name] = NodeTypeConfig(name, group["minReplicas"], group["maxReplicas"], resources=resources)
    return types


@pytest.fixture(params=[launcher_types, kuberay_types], ids=["cluster.yaml", "rayjob.yaml"])
def types(request: pytest.FixtureRequest) -> dict[str, NodeTypeConfig]:
    return request.param()


def nodes_for(types: Mapping[str, NodeTypeConfig], *demands: tuple[int, Shape]) -> dict[str, int]:
    """Workers that a cluster with the head alone would start; there must be one for every demand."""
    requests = [ResourceRequestUtil.make(shape) for count, shape in demands for _ in range(count)]
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=dict(types),
        max_num_nodes=sum(node.max_worker_nodes for node in types.values()),
        resource_requests=ResourceRequestUtil.group_by_count(requests),
    )
    reply = ResourceDemandScheduler(None).schedule(request)
    assert not reply.infeasible_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def actor(gpu_share: float) -> Shape:
    resources = Cluster(cpus=0, gpus=1, node_memory=0).resources(Pool(), gpu_share)
    return {"GPU": resources["num_gpus"], "CPU": resources["num_cpus"]}


def audio_task(rows: int) -> Shape:
    return {"CPU": 1, "memory": reading_memory(rows, 6.0, clips_per_row=CLIPS_PER_ROW)}


STAGES = {stage.name: stage for stage in stages_of(Run((), "", "", ResultSettings()))}
SHARES = gpu_shares(STAGES.values())
SAMPLER, RANKER = actor(SHARES["sample"]), actor(SHARES["rank"])


def test_audio_tasks_bring_cpu_nodes_only(types: dict[str, NodeTypeConfig]) -> None:
    per_node = int(types["cpu_worker"].resources["CPU"])
    for count in (1, per_node, per_node + 1, 4 * per_node):
        assert nodes_for(types, (count, audio_task(32))) == {"cpu_worker": -(-count // per_node)}
    assert nodes_for(types, (1, {"CPU": STAGES["write"].num_cpus or 0})) == {"cpu_worker": 1}


def test_the_largest_blocks_fit_every_node(types: dict[str, NodeTypeConfig]) -> None:
    task = audio_task(MAX_ROWS_PER_BLOCK)
    assert nodes_for(types, (1, task)) == {"cpu_worker": 1}
    assert all(node.resources["memory"] >= task["memory"] for node in types.values())


def test_a_sampler_and_a_ranker_share_a_gpu(types: dict[str, NodeTypeConfig]) -> None:
    for count in (1, 2, types["gpu_worker"].max_worker_nodes):
        assert nodes_for(types, (count, SAMPLER), (count, RANKER)) == {"gpu_worker": count}


def test_with_work_for_all_stages_both_kinds_come(types: dict[str, NodeTypeConfig]) -> None:
    """Audio tasks may use the CPUs that GPU nodes have to spare, but never bring one more of them."""
    per_node = int(types["cpu_worker"].resources["CPU"])
    tasks = 2 * per_node + int(4 * types["gpu_worker"].resources["CPU"])
    nodes = nodes_for(types, (4, SAMPLER), (4, RANKER), (tasks, audio_task(32)))
    assert nodes["gpu_worker"] == 4
    assert 2 <= nodes["cpu_worker"] <= -(-tasks // per_node)
