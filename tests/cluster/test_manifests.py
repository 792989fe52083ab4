"""The cluster manifests: valid as shipped, rejected when broken, and in step with the rest of the project."""

import copy
import json
import shlex
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from jobs import synthesize
from jobs.options import read_run

ROOT = Path(__file__).parents[2]
RAYJOB_SCHEMA = json.loads((ROOT / "tests/data/rayjob.schema.json").read_text())

Break = Callable[[dict[str, Any]], object]


@pytest.fixture
def launcher() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def runtime_env() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "examples/runtime_env.yaml").read_text())


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "examples/kuberay/rayjob.yaml").read_text())


def validate_launcher(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ray's own checks, as `ray up` runs them before it talks to a cloud."""
    prepared = prepare_config(copy.deepcopy(dict(config)))
    validate_config(prepared)
    return prepared


def validate_rayjob(manifest: Mapping[str, Any]) -> None:
    jsonschema.Draft202012Validator(RAYJOB_SCHEMA).validate(manifest)


def constrained_versions() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_the_launcher_manifest_passes_rays_own_validation(launcher: dict[str, Any]) -> None:
    prepared = validate_launcher(launcher)
    assert set(prepared["available_node_types"]) == {"head", "cpu_worker", "gpu_worker"}


LAUNCHER_BREAKS: dict[str, Break] = {
    "unknown top-level key": lambda c: c.update(max_wrokers=3),
    "unknown node-type key": lambda c: c["available_node_types"]["cpu_worker"].update(minworkers=1),
    "unknown docker key": lambda c: c["docker"].update(imagee="ray"),
    "node type without resources": lambda c: c["available_node_types"]["gpu_worker"].pop("resources"),
    "number of workers as text": lambda c: c["available_node_types"]["gpu_worker"].update(max_workers="16"),
    "fractional resource": lambda c: c["available_node_types"]["gpu_worker"]["resources"].update(GPU=0.5),
    "head type that is not there": lambda c: c.update(head_node_type="haed"),
    "setup commands as one text": lambda c: c.update(setup_commands="pip install ."),
    "no provider": lambda c: c.pop("provider"),
    "fewer workers in all than the minimum of a type": lambda c: (
        c.update(max_workers=1),
        c["available_node_types"]["cpu_worker"].update(min_workers=2),
    ),
}


@pytest.mark.parametrize("break_it", LAUNCHER_BREAKS.values(), ids=LAUNCHER_BREAKS.keys())
def test_a_broken_launcher_manifest_is_rejected(launcher: dict[str, Any], break_it: Break) -> None:
    break_it(launcher)
    with pytest.raises((jsonschema.ValidationError, ValueError, KeyError, TypeError, AssertionError)):
        validate_launcher(launcher)


def test_the_head_takes_no_work_and_the_workers_start_from_none(launcher: dict[str, Any]) -> None:
    types = launcher["available_node_types"]
    assert launcher["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    assert "GPU" not in types["cpu_worker"]["resources"]
    assert types["gpu_worker"]["resources"]["GPU"] >= 1
    for worker in ("cpu_worker", "gpu_worker"):
        assert types[worker]["min_workers"] == 0 < types[worker]["max_workers"]
        assert types[worker]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert launcher["max_workers"] == types["cpu_worker"]["max_workers"] + types["gpu_worker"]["max_workers"]


def test_the_shared_memory_of_the_container_holds_every_object_store(launcher: dict[str, Any]) -> None:
    (shm,) = [option for option in launcher["docker"]["run_options"] if option.startswith("--shm-size=")]
    shm_bytes = int(shm.removeprefix("--shm-size=").removesuffix("gb")) * 2**30
    commands = launcher["head_start_ray_commands"] + launcher["worker_start_ray_commands"]
    stores = [
        int(word.split("=")[1]) for c in commands for word in c.split() if "--object-store-memory=" in word
    ]
    assert len(stores) == 2
    assert max(stores) < shm_bytes


def test_the_kuberay_manifest_has_only_published_fields(rayjob: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(RAYJOB_SCHEMA)
    validate_rayjob(rayjob)


def worker_group(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    (group,) = [g for g in manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"] if g["groupName"] == name]
    return group


def container(group: Mapping[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]["containers"][0]


RAYJOB_BREAKS: dict[str, Break] = {
    "old API version": lambda m: m.update(apiVersion="ray.io/v1alpha1"),
    "misspelt job field": lambda m: m["spec"].update(shutdownAfterJobFinish=True),
    "no entrypoint": lambda m: m["spec"].pop("entrypoint"),
    "autoscaling under a wrong name": lambda m: m["spec"]["rayClusterSpec"].update(enableAutoscaling=True),
    "autoscaler version that does not exist": lambda m: m["spec"]["rayClusterSpec"][
        "autoscalerOptions"
    ].update(version="v3"),
    "idle timeout in minutes": lambda m: m["spec"]["rayClusterSpec"]["autoscalerOptions"].update(
        idleTimeoutMinutes=5
    ),
    "start parameter as a number": lambda m: m["spec"]["rayClusterSpec"]["headGroupSpec"][
        "rayStartParams"
    ].update({"num-cpus": 0}),
    "launcher's word for replicas": lambda m: worker_group(m, "gpu-worker").update(max_workers=16),
    "negative replicas": lambda m: worker_group(m, "cpu-worker").update(minReplicas=-1),
    "GPU under a wrong resource name": lambda m: container(worker_group(m, "gpu-worker"))["resources"][
        "limits"
    ].update(GPU=1),
    "memory unit that does not exist": lambda m: container(worker_group(m, "cpu-worker"))["resources"][
        "limits"
    ].update(memory="56GiB"),
    "container without image": lambda m: container(worker_group(m, "cpu-worker")).pop("image"),
    "runtime environment as an object": lambda m: m["spec"].update(runtimeEnvYAML={"env_vars": {}}),
}


@pytest.mark.parametrize("break_it", RAYJOB_BREAKS.values(), ids=RAYJOB_BREAKS.keys())
def test_a_broken_kuberay_manifest_is_rejected(rayjob: dict[str, Any], break_it: Break) -> None:
    break_it(rayjob)
    with pytest.raises(jsonschema.ValidationError):
        validate_rayjob(rayjob)


def test_the_kuberay_manifest_scales_cpu_and_gpu_workers_from_none(rayjob: dict[str, Any]) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert {g["groupName"] for g in cluster["workerGroupSpecs"]} == {"cpu-worker", "gpu-worker"}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"]
        resources = container(group)["resources"]
        assert resources["requests"] == resources["limits"]
        assert ("nvidia.com/gpu" in resources["limits"]) == (group["groupName"] == "gpu-worker")


def test_the_kuberay_job_knows_how_many_gpus_can_come(rayjob: dict[str, Any]) -> None:
    group = worker_group(rayjob, "gpu-worker")
    gpus = group["maxReplicas"] * int(container(group)["resources"]["limits"]["nvidia.com/gpu"])
    arguments = shlex.split(rayjob["spec"]["entrypoint"])
    assert arguments[:3] == ["python", "-m", "jobs.synthesize"]
    parser = synthesize.make_parser()
    run = read_run(parser, parser.parse_args(arguments[3:]), synthesize.TEMPLATE)
    assert run.execution.gpus == gpus


def test_every_node_has_the_settings_that_ray_reads_where_it_starts(
    launcher: dict[str, Any], rayjob: dict[str, Any]
) -> None:
    words = [word for option in launcher["docker"]["run_options"] for word in option.split()]
    given = dict(word.split("=", 1) for word in words if word.startswith("RAY_"))
    assert given.pop("RAY_AUTH_MODE") == "token"  # on Kubernetes the operator's, by authOptions
    assert rayjob["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert set(given) == {
        "RAY_idle_worker_killing_time_threshold_ms",
        "RAY_task_oom_retries",
        "RAY_JOB_STOP_WAIT_TIME_S",
    }
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert {item["name"]: item["value"] for item in container(group)["env"]} == given


def test_the_runtime_environment_is_that_of_the_project(runtime_env: dict[str, Any]) -> None:
    """pyproject.toml's dependencies but for Ray, as constraints.txt pins them; Ray's own checks pass."""
    validated = RuntimeEnv(**runtime_env)
    constraints, *packages = validated["pip"]["packages"]
    assert constraints == "-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {Requirement(text).name.lower() for text in project["dependencies"]} - {"ray"}
    pinned = dict(package.split("==") for package in packages)
    assert {name.lower() for name in pinned} == names | {"pandas"}
    assert {
        name.lower(): version for name, version in pinned.items()
    }.items() <= constrained_versions().items()
    assert all(isinstance(value, str) for value in runtime_env["env_vars"].values())


RUNTIME_ENV_BREAKS: dict[str, Break] = {
    "unknown field of pip": lambda r: r["pip"].update(constraint="constraints.txt"),
    "packages as one text": lambda r: r["pip"].update(packages="torch"),
    "number as a value": lambda r: r["env_vars"].update(RAY_JOB_STOP_WAIT_TIME_S=60),
    "a second installer": lambda r: r.update(uv=["torch"]),
}


@pytest.mark.parametrize("break_it", RUNTIME_ENV_BREAKS.values(), ids=RUNTIME_ENV_BREAKS.keys())
def test_a_broken_runtime_environment_is_rejected(runtime_env: dict[str, Any], break_it: Break) -> None:
    break_it(runtime_env)
    with pytest.raises((ValueError, TypeError)):
        RuntimeEnv(**runtime_env)


def test_every_place_names_the_ray_of_the_constraints(
    launcher: dict[str, Any], rayjob: dict[str, Any]
) -> None:
    version = constrained_versions()["ray"]
    images = [
        launcher["docker"]["head_image"],
        launcher["docker"]["worker_image"],
        launcher["available_node_types"]["gpu_worker"]["docker"]["worker_image"],
        (ROOT / "examples/kuberay/Dockerfile").read_text().split("FROM ")[1].split()[0],
        (ROOT / "examples/runtime_env.yaml").read_text().split("(rayproject/")[1].split(",")[0],
    ]
    assert {image.split(":")[1].split("-")[0] for image in images} == {version}
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == version
