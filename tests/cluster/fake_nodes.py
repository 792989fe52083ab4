"""The node types of cluster.yaml on Ray's fake provider: every node is a raylet on this machine."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler._private.util import prepare_config

from tests.cluster.ray_head import MARKER, ROOT, kill, processes

NODE_ID = "RAY_OVERRIDE_NODE_ID_FOR_TESTING"
HEAD_ID = "f" * 51 + "00000"
HEAD_TYPE = "ray.head.default"  # the fake provider knows no other name
MAX_WORKERS = 2
MEMORY = 8 << 30  # the launcher looks it up for the type of instance, and the decoding tasks ask for it
PROVIDER = {
    "type": "external",
    "module": "tests.cluster.fake_nodes.FakeNodes",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
    "launch_multiple": True,
    "head_node_id": HEAD_ID,
}
# What `ray up` sets on the head; and a killed node is noticed in seconds.
ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "PYTHONPATH": str(ROOT),  # to find the provider
    NODE_ID: HEAD_ID,
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_NODE_TYPE_NAME": HEAD_TYPE,
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS": "2",  # seconds; 10 by default
    "RAY_DATA_CLUSTER_UTIL_AVG_WINDOW_S": "4",
}


class FakeNodes(FakeMultiNodeProvider):
    """Ray's own, for nodes with memory: it would take that for a resource of the user's."""

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: dict[str, Any], labels: Any
    ) -> None:
        others = {name: amount for name, amount in resources.items() if name != "memory"}
        super().create_node_with_resources_and_labels(node_config, tags, count, others, labels)


def launcher() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def write_bootstrap_config(home: Path, gcs: str) -> Sequence[str]:
    """Where the launcher puts it on the head, with nodes of one CPU, so that every pool needs several."""
    config = prepare_config(launcher())
    types = {}
    for name, node in config["available_node_types"].items():
        is_head = name == config["head_node_type"]
        resources = {resource: min(count, 1) for resource, count in node["resources"].items()}
        types[HEAD_TYPE if is_head else name] = {
            "resources": resources if is_head else resources | {"memory": MEMORY},
            "min_workers": node["min_workers"],
            "max_workers": min(node["max_workers"], MAX_WORKERS),
            "node_config": {},
        }
    config |= {"available_node_types": types, "head_node_type": HEAD_TYPE, "idle_timeout_minutes": 0.2}
    config |= {"provider": PROVIDER | {"gcs_address": gcs}, "docker": {}, "file_mounts": {}}
    config |= {"cluster_synced_files": []}
    path = home / "ray_bootstrap_config.yaml"
    path.write_text(yaml.safe_dump(config))
    return [f"--autoscaling-config={path}"]


def running_nodes(cluster: Path) -> dict[str, str]:
    """Type by id of the nodes whose raylet lives."""
    nodes = {}
    for pid in processes({MARKER: str(cluster)}, descendants=False):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
            pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
            if command.endswith("/raylet"):
                variables = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
                nodes[variables[NODE_ID]] = variables["RAY_NODE_TYPE_NAME"]
    return nodes


def count_types(nodes: dict[str, str]) -> Counter[str]:
    return Counter(kind for kind in nodes.values() if kind != HEAD_TYPE)


def kill_node(cluster: Path, node: str) -> int:
    """As a spot instance goes: the raylet and all its workers at once. Says how many processes there were."""
    return kill({MARKER: str(cluster), NODE_ID: node})


def nodes_with(cluster: Path, stage: str) -> set[str]:
    """Ids of the workers on which an actor of that stage is alive, by the titles of their processes."""
    found = set()
    for node in running_nodes(cluster).keys() - {HEAD_ID}:
        for pid in processes({MARKER: str(cluster), NODE_ID: node}):
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_text()
                if title.startswith("ray::MapWorker") and stage in title:
                    found.add(node)
    return found
