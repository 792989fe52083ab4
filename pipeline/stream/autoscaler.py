"""What Ray's cluster launcher may still start: a cluster that begins with its head alone has no GPU to count.

Ray keeps the node types to itself (its `ClusterConfig` stays empty outside of Anyscale), but `ray up` leaves
them on the head in a file, and a submitted job runs there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

BOOTSTRAP_CONFIG = "~/ray_bootstrap_config.yaml"  # named in Ray's default head_start_ray_commands


def launcher_gpus(path: str | Path = BOOTSTRAP_CONFIG) -> int | None:
    """The most GPUs that the launcher's cluster can have at one time, running ones included.

    None where this machine is not the head of such a cluster, or its file cannot be understood.
    """
    try:
        return most_gpus(yaml.safe_load(Path(path).expanduser().read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return None


def most_gpus(config: Mapping[str, Any]) -> int:
    """GPUs of the head and of as many workers as are allowed, by type and in all, the largest first."""
    total = 0
    left = int(config["max_workers"])
    workers: list[tuple[int, int]] = []
    for name, node in config["available_node_types"].items():
        gpus = int(node.get("resources", {}).get("GPU", 0))
        if name == config["head_node_type"]:
            total += gpus
        else:
            # The launcher's own default for a type without the field is the cluster's limit.
            workers.append((gpus, int(node.get("max_workers", config["max_workers"]))))
    for gpus, count in sorted(workers, reverse=True):
        count = min(count, left)
        total += count * gpus
        left -= count
    return total
