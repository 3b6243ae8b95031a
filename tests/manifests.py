"""What kustomize makes of k8s/, and how to find something in it."""

import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

K8S = Path("k8s")
Object = dict[str, Any]


def kustomized(folder: Path) -> list[Object]:
    """What kustomize makes of a folder."""
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def rendered(overlay: str) -> list[Object]:
    """The objects of an overlay."""
    return kustomized(K8S / "overlays" / overlay)


def of_kind(objects: Sequence[Object], *kinds: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] in kinds}


def workloads(objects: Sequence[Object]) -> dict[str, Object]:
    return of_kind(objects, "Deployment", "StatefulSet", "Job", "CronJob")


def services_in(objects: Sequence[Object]) -> dict[str, Object]:
    return {
        name: each
        for name, each in of_kind(objects, "Deployment").items()
        if labels(each).get("app.kubernetes.io/component") == "service"
    }


def template(workload: Object) -> Object:
    made: Object = workload["spec"].get("jobTemplate", workload)["spec"]["template"]
    return made


def pod(workload: Object) -> Object:
    spec: Object = template(workload)["spec"]
    return spec


def container(workload: Object) -> Object:
    (only,) = pod(workload)["containers"]
    return dict(only)


def labels(workload: Object) -> Mapping[str, str]:
    found: Mapping[str, str] = template(workload)["metadata"]["labels"]
    return found


def ports(workload: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(workload).get("ports", [])}


def matches(selector: Object | None, given: Mapping[str, str]) -> bool:
    """Whether labels are those that a selector wants; an empty one wants all."""
    if selector is None:
        return False
    for rule in selector.get("matchExpressions", []):
        value = given.get(rule["key"])
        if (value in rule["values"]) != (rule["operator"] == "In"):
            return False
    return all(given.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def environment(
    workload: Object, objects: Sequence[Object], secrets: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """The variables of a container, but for those that Kubernetes finds when it starts."""
    spec = container(workload)
    found: dict[str, str] = {}
    for source in spec.get("envFrom", []):
        if "configMapRef" in source:
            found |= of_kind(objects, "ConfigMap")[source["configMapRef"]["name"]]["data"]
        else:
            found |= secrets[source["secretRef"]["name"]]
    return found | {each["name"]: each["value"] for each in spec.get("env", []) if "value" in each}


def mounted(workload: Object, secrets: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What is in the files that Secrets are mounted as, by path."""
    volumes = {each["name"]: each["secret"]["secretName"] for each in pod(workload)["volumes"] if "secret" in each}
    return {
        f"{mount['mountPath']}/{name}": value
        for mount in container(workload)["volumeMounts"]
        if mount["name"] in volumes
        for name, value in secrets[volumes[mount["name"]]].items()
    }
