"""What is given to Kubernetes: valid, as the code is, and no more open than it has to be.

`kubectl kustomize` renders each overlay once; needs kubectl, and no cluster.
"""

import inspect
import ipaddress
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]  # it ships no types
import pytest
import yaml

import tests.routes
from common import topology
from common.http import create_app
from common.rights import everybody, postgres_roles, role_of
from common.runtime import STOP_SECONDS
from common.settings import FILE, PREFIX, SECRET, Settings, load
from services.cli import servers
from services.cli.secrets import for_kubernetes
from services.cli.system import SERVICES, server_of
from services.identity.settings import IdentitySettings
from services.notification.addresses import is_public
from tests.manifests import (
    K8S,
    Object,
    container,
    environment,
    kustomized,
    labels,
    matches,
    mounted,
    of_kind,
    pod,
    ports,
    rendered,
    services_in,
    workloads,
)

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: it renders k8s/")

OVERLAYS = ("dev", "debug", "prod")
VERSION = "1.34"
NAMESPACE = "boxoffice"

SHOP_WITH_ALL = {"resources": ["overlays/prod"], "components": ["components/gateway-api", "components/tracing"]}
"""What no overlay has switched on."""

OF_OTHERS = {
    "Cluster": ("postgresql.cnpg.io/v1", {"instances", "bootstrap", "managed", "storage"}),
    "HTTPRoute": ("gateway.networking.k8s.io/v1", {"parentRefs", "rules"}),
    "PodMonitor": ("monitoring.coreos.com/v1", {"selector", "podMetricsEndpoints"}),
    "PrometheusRule": ("monitoring.coreos.com/v1", {"groups"}),
    "ScaledObject": ("keda.sh/v1alpha1", {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "triggers"}),
}
"""Kinds that are not Kubernetes' own, for which there are no schemas here; and what each has to say."""

WRITABLE = {"dev", "debug"}
"""Where files are copied into the containers of services as they change."""


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def objects(overlay: str) -> list[Object]:
    return rendered(overlay)


@pytest.fixture(scope="module")
def with_all(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    folder = tmp_path_factory.mktemp("overlay")
    up = Path(os.path.relpath(K8S.resolve(), folder.resolve()))
    parts = {what: [str(up / name) for name in names] for what, names in SHOP_WITH_ALL.items()}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"namespace": NAMESPACE, **parts}))
    return kustomized(folder)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, str]]:
    """What `boxoffice secrets --format kubernetes` makes, by name."""
    made = yaml.safe_load_all(for_kubernetes(tmp_path_factory.mktemp("secrets")))
    found = {secret["metadata"]["name"]: secret["stringData"] for secret in made}
    found["boxoffice-identity"]["oidc_client_secret"] = "theirs"  # noqa: S105  # whoever opens a shop writes it
    return found


# What Kubernetes says


def test_every_object_is_valid(with_all: list[Object]) -> None:
    everything = [each for overlay in OVERLAYS for each in rendered(overlay)] + with_all
    for each in {json.dumps(each, sort_keys=True, default=str): each for each in everything}.values():
        if each["kind"] in OF_OTHERS:
            version, needed = OF_OTHERS[each["kind"]]
            assert each["apiVersion"] == version
            assert needed <= set(each["spec"])
        else:
            kubernetes_validate.validate(each, VERSION, strict=True)


def test_all_is_in_one_namespace_that_is_restricted(objects: list[Object]) -> None:
    (namespace,) = of_kind(objects, "Namespace").values()
    assert namespace["metadata"]["name"] == NAMESPACE
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {each["metadata"].get("namespace") for each in objects if each["kind"] != "Namespace"} == {NAMESPACE}


def test_no_name_is_there_twice(objects: list[Object]) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names)


# What each service is


def test_every_service_is_there(objects: list[Object]) -> None:
    assert set(services_in(objects)) == set(SERVICES)
    for name, each in services_in(objects).items():
        assert container(each)["args"][:2] == ["serve", name]
        assert labels(each)["app.kubernetes.io/name"] == name
    (migrate,) = of_kind(objects, "Job").values()
    assert container(migrate)["args"] == ["migrate"]


def test_every_service_starts_with_its_variables(
    objects: list[Object], secrets: Mapping[str, Mapping[str, str]], tmp_path: Path
) -> None:
    known = {field for _, kind in SERVICES.values() for field in kind.__struct_fields__}
    users = {**services_in(objects), "migrate": next(iter(of_kind(objects, "Job").values()))}
    for name, each in users.items():
        kind = SERVICES[name][1] if name in SERVICES else Settings
        files, given = mounted(each, secrets), {}
        for variable, value in environment(each, objects, secrets).items():
            assert variable.startswith(PREFIX), f"{name}: {variable}"
            field = variable.removeprefix(PREFIX).removesuffix(FILE).lower()
            own = {entry["name"] for entry in container(each).get("env", [])}
            assert field in (kind.__struct_fields__ if variable in own else known), f"{name}: {variable}"
            if variable.endswith(FILE):
                path = tmp_path / f"{name}-{field}"
                path.write_text(files[value])  # a KeyError: no Secret that is mounted there has such a key
                given[variable] = str(path)
            else:
                given[variable] = value
        settings = load(kind, given, of=name)
        assert f"//{name}:" in settings.nats_url
        assert f"//{role_of(name)}:" in settings.database_url
        assert {f"{path}" for path in files} == {
            entry["value"] for entry in container(each)["env"] if entry["name"].endswith(FILE)
        }, f"{name} has a secret that it does not read"
        if name in SERVICES:
            listening = {"http": settings.port, "metrics": settings.metrics_port}
            assert ports(each) == listening | ({"debug": 5678} if "command" in container(each) else {})
            assert settings.host == "0.0.0.0"  # noqa: S104  # in a pod, where policies say who may come
        if isinstance(settings, IdentitySettings):
            assert settings.encryption_secret
            assert settings.auth == "dev" or settings.providers


WRITES = {"nats": {"/data", "/tmp"}, "postgres": {"/var/lib/postgresql", "/var/run/postgresql", "/tmp", "/dev/shm"}}  # noqa: S108  # in a pod
"""Where what is not ours has to write, though its root is read-only."""


def test_what_is_mounted_is_there(objects: list[Object], secrets: Mapping[str, Mapping[str, str]]) -> None:
    configs = of_kind(objects, "ConfigMap")
    for name, each in workloads(objects).items():
        used = {found["name"] for source in container(each).get("envFrom", []) for found in source.values()}
        used |= {
            entry["valueFrom"]["configMapKeyRef"]["name"]
            for entry in container(each).get("env", [])
            if "configMapKeyRef" in entry.get("valueFrom", {})
        }
        for volume in pod(each)["volumes"]:
            for source in [volume, *volume.get("projected", {}).get("sources", [])]:
                used |= {
                    found
                    for kind in ("secret", "configMap")
                    for key, found in source.get(kind, {}).items()
                    if key in ("name", "secretName")
                }
        assert used <= {*configs, *secrets}, name
        own = {found for found in used if found.startswith("boxoffice-")}
        user = "migrate" if name.partition("-")[0] in {"migrate", *OPERATIONS} else name
        assert own == ({f"boxoffice-{user}"} if user in everybody() else set()), "each has the login that is its own"
        if name in WRITES:
            writable = {mount["mountPath"] for mount in container(each)["volumeMounts"] if not mount.get("readOnly")}
            assert writable == WRITES[name]
    if postgres := workloads(objects).get("postgres"):
        (scripts,) = [mount for mount in container(postgres)["volumeMounts"] if mount["name"] == "roles"]
        assert scripts["mountPath"] == "/docker-entrypoint-initdb.d"  # where its image looks


def test_no_secret_is_written_down(objects: list[Object]) -> None:
    assert not of_kind(objects, "Secret")
    for each in of_kind(objects, "ConfigMap").values():
        for name in each["data"]:
            assert not SECRET & set(name.lower().split("_")), name
    for each in workloads(objects).values():
        for entry in container(each).get("env", []):
            if SECRET & set(entry["name"].lower().split("_")) and "value" in entry:
                assert entry["name"].endswith(FILE)


def test_kubernetes_sets_no_variables_of_its_own(objects: list[Object]) -> None:
    # For a Service `boxoffice-orders` it would set BOXOFFICE_ORDERS_PORT=tcp://..., which is a setting of ours.
    assert all(pod(each)["enableServiceLinks"] is False for each in workloads(objects).values())


def test_every_pod_is_who_it_is_and_may_ask_kubernetes_nothing(objects: list[Object]) -> None:
    accounts = of_kind(objects, "ServiceAccount")
    assert not any(each["automountServiceAccountToken"] for each in accounts.values())
    names = [pod(each)["serviceAccountName"] for each in workloads(objects).values()]
    assert sorted(names) == sorted(accounts), "one for each, and none besides"
    assert not any(pod(each)["automountServiceAccountToken"] for each in workloads(objects).values())


def test_no_container_may_more_than_it_has_to(objects: list[Object], overlay: str) -> None:
    for name, each in workloads(objects).items():
        outer, inner = pod(each)["securityContext"], container(each)["securityContext"]
        assert outer["runAsNonRoot"] is True
        assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
        assert inner["allowPrivilegeEscalation"] is False
        assert inner["capabilities"] == {"drop": ["ALL"]}
        assert inner["readOnlyRootFilesystem"] is not (overlay in WRITABLE and name in SERVICES), name
        assert any(mount["mountPath"] == "/tmp" for mount in container(each)["volumeMounts"])  # noqa: S108  # in a pod
        assert not any("hostPath" in volume for volume in pod(each)["volumes"])


def test_every_container_asks_for_what_it_needs_and_has_a_limit(objects: list[Object]) -> None:
    for each in workloads(objects).values():
        resources = container(each)["resources"]
        assert set(resources["requests"]) == set(resources["limits"]) == {"cpu", "memory"}


def test_every_server_has_three_probes_of_its_own_ports(objects: list[Object], overlay: str) -> None:
    for name, each in workloads(objects).items():
        spec = container(each)
        there = {kind for kind in ("startupProbe", "readinessProbe", "livenessProbe") if kind in spec}
        if name in OPERATIONS or name.startswith("migrate"):
            assert not there  # they serve nobody
            continue
        lives = set() if overlay == "debug" and name in SERVICES else {"livenessProbe"}
        assert there == {"startupProbe", "readinessProbe"} | lives, name
        for kind in there:
            for way in ("httpGet", "tcpSocket"):
                if way in spec[kind]:
                    assert spec[kind][way]["port"] in ports(each)
        if name in SERVICES:
            assert spec["startupProbe"]["httpGet"]["path"] == "/health/live"
            assert spec["readinessProbe"]["httpGet"]["path"] == "/health/ready"
            if lives:
                assert spec["livenessProbe"]["httpGet"]["path"] == "/health/live"


def test_a_pod_has_longer_to_end_than_it_takes() -> None:
    config = server_of(create_app([], Settings())).config
    assert config.timeout_graceful_shutdown
    for name, each in services_in(rendered("prod")).items():
        before = container(each)["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = config.timeout_graceful_shutdown + STOP_SECONDS + 2  # to close the connection to NATS
        assert before + drain + 10 <= pod(each)["terminationGracePeriodSeconds"], name


def test_a_new_version_takes_no_pod_away_before_another_is_ready(objects: list[Object]) -> None:
    for each in services_in(objects).values():
        assert each["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_two_of_each_serve_a_shop_on_different_machines() -> None:
    for name, each in services_in(rendered("prod")).items():
        assert each["spec"].get("replicas", 2) == 2
        keys = {spread["topologyKey"] for spread in pod(each)["topologySpreadConstraints"]}
        assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}, name


def test_every_selector_is_for_one_workload(objects: list[Object]) -> None:
    pods = {name: labels(each) for name, each in workloads(objects).items()}
    selectors = {
        ("spread", name, n): spread["labelSelector"]
        for name, each in workloads(objects).items()
        for n, spread in enumerate(pod(each).get("topologySpreadConstraints", []))
    }
    for each in objects:
        name = each["metadata"]["name"]
        if each["kind"] in {"Deployment", "StatefulSet", "PodDisruptionBudget"}:
            selectors[each["kind"], name, 0] = each["spec"]["selector"]
        elif each["kind"] == "Service":
            selectors["Service", name, 0] = {"matchLabels": each["spec"]["selector"]}
    for (kind, name, _), selector in selectors.items():
        chosen = [workload for workload, given in pods.items() if matches(selector, given)]
        assert chosen == [name.removesuffix("-headless")], f"{kind} {name}"


def test_what_serves_survives_that_a_machine_is_emptied(objects: list[Object]) -> None:
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert set(budgets) == {*SERVICES, "nats"}
    assert all(each["spec"]["maxUnavailable"] == 1 for each in budgets.values())


def test_services_lead_to_ports_that_there_are(objects: list[Object]) -> None:
    for name, each in of_kind(objects, "Service").items():
        there = ports(workloads(objects)[name.removesuffix("-headless")])
        for port in each["spec"]["ports"]:
            assert there[port["targetPort"]] == port["port"], name


# Who may reach whom

OUTSIDE = {
    "ingress": {"boxoffice/ingress": "yes"},
    "monitoring": {"boxoffice/monitoring": "yes"},
    "keda": {"kubernetes.io/metadata.name": "keda"},
    "cnpg": {"kubernetes.io/metadata.name": "cnpg-system"},
}
"""Other namespaces, by their labels."""
OPERATIONS = {"backup", "console"}
"""What an operator has beside what serves."""

WITH_DATABASE = {"migrate"} | {name for name in SERVICES if "pool(" in Path(f"services/{name}/app.py").read_text()}


def opens(
    rules: Sequence[Object], side: str, who: Mapping[str, str] | None, space: Mapping[str, str], port: Object
) -> bool:
    """Whether one of these rules lets a pod of that namespace (None: ours) through to a port."""
    for rule in rules:
        if not any(wanted["port"] in port.values() for wanted in rule["ports"]):
            continue
        for peer in rule[side]:
            if "ipBlock" in peer:
                continue  # pods are told apart by labels; addresses are looked at below
            of_space = "namespaceSelector" in peer
            if of_space and not matches(peer["namespaceSelector"], space):
                continue
            if not of_space and space:
                continue
            if "podSelector" not in peer or matches(peer["podSelector"], who or {}):
                return True
    return False


def reachable(objects: Sequence[Object]) -> tuple[set[tuple[str, str, int]], set[tuple[str, str, int]]]:
    """Whom each pod lets in on which port, and whom each pod is let out to: (from, to, port)."""
    policies = of_kind(objects, "NetworkPolicy").values()
    pods = {name.partition("-0.")[0]: (labels(each), ports(each)) for name, each in workloads(objects).items()}
    for name, each in of_kind(objects, "Cluster").items():  # its pods are made by an operator
        inherited = each["spec"]["inheritedMetadata"]["labels"]
        pods[name] = ({**inherited, "cnpg.io/cluster": name}, {"postgresql": 5432, "status": 8000})

    def rules(side: str, given: Mapping[str, str]) -> list[Object]:
        return [
            rule
            for each in policies
            if matches(each["spec"]["podSelector"], given)
            for rule in each["spec"].get(side, [])
        ]

    let_in, let_out = set(), set()
    for target, (its_labels, open_ports) in pods.items():
        for key, number in open_ports.items():
            port, ingress = {"name": key, "number": number}, rules("ingress", its_labels)
            let_in |= {
                (name, target, number) for name, space in OUTSIDE.items() if opens(ingress, "from", {}, space, port)
            }
            for name, (own, _) in pods.items():
                if opens(ingress, "from", own, {}, port):
                    let_in.add((name, target, number))
                if opens(rules("egress", own), "to", its_labels, {}, port):
                    let_out.add((name, target, number))
    return let_in, let_out


def test_nobody_reaches_anybody_without_need(overlay: str) -> None:
    behind = {name for name in SERVICES if name != "expiration"}
    wanted = {(name, "nats", 4222) for name in [*SERVICES, "migrate"]} | {("nats", "nats", 6222)}
    wanted |= {(name, "postgres", 5432) for name in WITH_DATABASE}
    outside = set()
    if overlay == "prod":
        wanted |= {(name, *server) for name in OPERATIONS for server in (("nats", 4222), ("postgres", 5432))}
        wanted |= {("postgres", "postgres", port) for port in (5432, 8000)}
        outside |= {("cnpg", "postgres", port) for port in (5432, 8000)} | {("keda", "nats", 8222)}
        outside |= {("ingress", name, 8080) for name in behind} | {("monitoring", name, 9090) for name in SERVICES}
    else:
        wanted |= {("gateway", name, 8080) for name in behind}
    let_in, let_out = reachable(rendered(overlay))
    assert let_in == wanted | outside
    assert let_out == wanted


def test_all_that_is_not_opened_is_shut(objects: list[Object]) -> None:
    policies = of_kind(objects, "NetworkPolicy")
    assert policies["default-deny"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    dns = [rule["ports"] for rule in policies["dns"]["spec"]["egress"]]
    assert all(ports == [{"protocol": way, "port": 53} for way in ("UDP", "TCP")] for ports in dns)
    assert policies["dns"]["spec"]["podSelector"] == {}
    for name, each in policies.items():
        sides = {side.capitalize() for side in ("ingress", "egress") if side in each["spec"]}
        if name != "default-deny":
            assert sides == set(each["spec"]["policyTypes"]), name
            assert all(
                rule["ports"] and (rule.get("from") or rule.get("to"))
                for side in sides
                for rule in each["spec"][side.lower()]
            ), name


def addresses_of(objects: Sequence[Object], name: str) -> Iterator[tuple[Object, Sequence[Object]]]:
    """The blocks of addresses that pods of that name reach, and on which ports."""
    given = labels(workloads(objects)[name])
    for each in of_kind(objects, "NetworkPolicy").values():
        if matches(each["spec"]["podSelector"], given):
            for rule in each["spec"].get("egress", []):
                for peer in rule["to"]:
                    if "ipBlock" in peer:
                        yield peer["ipBlock"], rule["ports"]


def within(address: str, block: Object) -> bool:
    ip = ipaddress.ip_address(address)
    return ip in ipaddress.ip_network(block["cidr"]) and not any(
        ip in ipaddress.ip_network(network) for network in block.get("except", [])
    )


PUBLIC = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.88.98.1
198.17.255.255 198.20.0.0 223.255.255.255 2606:4700::1 2a00:1450::1
"""
PRIVATE = """
0.0.0.1 10.0.0.1 100.64.0.1 127.0.0.1 168.63.129.16 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.8 192.0.2.1
192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 240.0.0.1 255.255.255.255
::1 fc00::1 fd00::1 fe80::1 2001:db8::1 2002:a00:1::1 3fff::1 ff02::1
"""


@pytest.mark.parametrize("name", ["notification", "identity"])
def test_what_leads_outside_leads_to_the_public_internet(name: str) -> None:
    for objects in (rendered(overlay) for overlay in OVERLAYS):
        blocks = [block for block, _ in addresses_of(objects, name) if not block["cidr"].startswith("169.254.20.10")]
        for addresses, public in ((PUBLIC, True), (PRIVATE, False)):
            for address in addresses.split():
                assert is_public(address) is public
                assert any(within(address, block) for block in blocks) is public, address


def test_nobody_else_leads_outside(objects: list[Object]) -> None:
    for name in workloads(objects):
        seen = {block["cidr"] for block, _ in addresses_of(objects, name)} - {"169.254.20.10/32"}
        assert bool(seen) == (name in {"notification", "identity"}), name
    wanted = {
        "identity": [{"protocol": "TCP", "port": 443}],
        "notification": [{"protocol": "TCP", "port": 1, "endPort": 65535}],
    }
    for name, allowed in wanted.items():
        assert all(found == allowed for block, found in addresses_of(objects, name) if block["cidr"] == "0.0.0.0/0")


def test_a_developer_is_believed_only_where_nothing_leads_in_from_outside(objects: list[Object]) -> None:
    auth = {
        value
        for each in of_kind(objects, "ConfigMap").values()
        for key, value in each["data"].items()
        if key == "BOXOFFICE_AUTH"
    }
    outside = of_kind(objects, "Ingress", "HTTPRoute")
    open_services = [
        each for each in of_kind(objects, "Service").values() if each["spec"].get("type", "ClusterIP") != "ClusterIP"
    ]
    assert auth == ({"on"} if outside else {"dev"})
    assert not open_services


# Which service answers what


@pytest.fixture(scope="module")
async def routes() -> Mapping[str, set[str]]:
    return await tests.routes.routes()


def answering(rules: Sequence[tuple[str, str, str]], path: str) -> str:
    """Who answers, by (type, path, service), as the specification of Ingress has it: an exact or the longest one."""
    fitting = [
        (kind == "Exact", len(prefix), service)
        for kind, prefix, service in rules
        if path == prefix or (kind == "Prefix" and (prefix == "/" or path.startswith(f"{prefix}/")))
    ]
    return max(fitting)[2]


def ingress_rules(objects: Sequence[Object]) -> list[tuple[str, str, str]]:
    (ingress,) = of_kind(objects, "Ingress").values()
    return [
        (each["pathType"], each["path"], each["backend"]["service"]["name"])
        for rule in ingress["spec"]["rules"]
        for each in rule["http"]["paths"]
    ]


def test_every_route_leads_to_the_service_that_has_it(routes: Mapping[str, set[str]]) -> None:
    rules = ingress_rules(rendered("prod"))
    used = set()
    for service, its in routes.items():
        for path in its:
            assert answering(rules, path) == service, path
        used |= {
            rule
            for rule in rules
            if rule[2] == service and any(answering([rule, ("Prefix", "/", "")], path) == service for path in its)
        }
    assert set(rules) - used <= {("Prefix", "/", "web")}, "routes that nobody answers"


def test_the_gateway_finds_every_service_that_has_doors(routes: Mapping[str, set[str]]) -> None:
    said = re.findall(
        r"upstream (\w+) +\{ server ([\w-]+):(\d+); \}", (K8S / "components/gateway/upstreams.conf").read_text()
    )
    assert sorted(name for name, _, _ in said) == sorted(name for name, its in routes.items() if its)
    for name, host, port in said:
        assert name == host
        assert int(port) in {each["port"] for each in of_kind(rendered("dev"), "Service")[host]["spec"]["ports"]}


def test_the_gateway_api_has_the_same_routes(with_all: list[Object]) -> None:
    assert not of_kind(with_all, "Ingress")
    (route,) = of_kind(with_all, "HTTPRoute").values()
    kinds = {"PathPrefix": "Prefix", "Exact": "Exact"}
    rules = [
        (kinds[match["path"]["type"]], match["path"]["value"], rule["backendRefs"][0]["name"])
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
    ]
    assert sorted(rules) == sorted(ingress_rules(rendered("prod")))
    ports_there = {port["port"] for each in of_kind(with_all, "Service").values() for port in each["spec"]["ports"]}
    assert {ref["port"] for rule in route["spec"]["rules"] for ref in rule["backendRefs"]} <= ports_there


# NATS, Postgres, and what scales and watches


@pytest.mark.parametrize(
    ("overlay", "name", "folder", "files"),
    [
        ("dev", "nats-config", "nats", ["nats.conf", "users.conf"]),
        ("prod", "nats-config", "nats", ["nats.conf", "users.conf"]),
        ("dev", "postgres-roles", "postgres", ["roles.sql"]),
        ("dev", "gateway-config", "gateway", ["nginx.conf"]),
        ("prod", "dashboard", "monitoring", ["dashboard.json"]),
    ],
)
def test_configuration_is_what_compose_has(overlay: str, name: str, folder: str, files: Sequence[str]) -> None:
    maps = of_kind(rendered(overlay), "ConfigMap").items()
    (there,) = [each["data"] for key, each in maps if key.startswith(f"{name}-")]
    assert there == {file: (Path("deploy") / folder / file).read_text() for file in files}


def test_alerts_are_what_compose_has() -> None:
    (rules,) = of_kind(rendered("prod"), "PrometheusRule").values()
    alerts = yaml.safe_load(Path("deploy/monitoring/alerts.yaml").read_text())
    assert rules["spec"] == alerts, "make it anew as the head of k8s/components/monitoring/rules.yaml says"


def test_nats_finds_what_its_configuration_names(
    objects: list[Object], secrets: Mapping[str, Mapping[str, str]]
) -> None:
    nats, conf = workloads(objects)["nats"], Path("deploy/nats/nats.conf").read_text()
    said = re.sub(r"#.*", "", conf + Path("deploy/nats/users.conf").read_text())
    there = {entry["name"] for entry in container(nats)["env"]} | set(secrets["nats-passwords"])
    assert set(re.findall(r"\$(NATS_[A-Z_]+)", said)) <= there
    assert set(map(int, re.findall(r"port: (\d+)", said))) == set(ports(nats).values())
    assert re.search(r"^  sync_interval: always$", said, re.MULTILINE), "what was acknowledged survives a power cut"
    (ends,) = re.findall(
        r"nats-server -sl=ldm=(\S+);", " ".join(container(nats)["lifecycle"]["preStop"]["exec"]["command"])
    )
    assert f"pid_file: {ends}\n" in said
    seconds = [int(value) for value in re.findall(r"lame_duck_\w+: (\d+)s", said)]
    assert sum(seconds) + 10 < pod(nats)["terminationGracePeriodSeconds"]


def test_nats_may_not_fill_its_disk(objects: list[Object]) -> None:
    nats = workloads(objects)["nats"]
    (most,) = [entry["value"] for entry in container(nats)["env"] if entry["name"] == "NATS_MAX_FILE_STORE"]
    disk = nats["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
    assert int(most) < 0.9 * int(disk.removesuffix("Gi")) * 2**30
    (settings,) = [each["data"] for name, each in of_kind(objects, "ConfigMap").items() if name.startswith("settings")]
    assert settings["BOXOFFICE_LOG_BYTES"] == most  # else nobody is told before it is full


def test_each_node_of_nats_knows_all(objects: list[Object]) -> None:
    nats = workloads(objects)["nats"]
    (routes,) = [entry["value"] for entry in container(nats)["env"] if entry["name"] == "NATS_ROUTES"]
    name, domain = nats["metadata"]["name"], nats["spec"]["serviceName"]
    wanted = [f"@{name}-{n}.{domain}:6222" for n in range(nats["spec"]["replicas"])]
    assert re.findall(r"@[^,\]]*", routes) == wanted
    headless = of_kind(objects, "Service")[domain]["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is True
    migrate = next(iter(of_kind(objects, "Job").values()))
    replicas = {entry["name"]: entry.get("value") for entry in container(migrate)["env"]}["BOXOFFICE_REPLICAS"]
    assert int(replicas) == min(3, nats["spec"]["replicas"])  # of more nodes each stream is on three


def test_addresses_of_servers_are_those_of_services(
    objects: list[Object], secrets: Mapping[str, Mapping[str, str]]
) -> None:
    there = {
        name: {port["port"] for port in each["spec"]["ports"]} for name, each in of_kind(objects, "Service").items()
    }
    for cluster in of_kind(objects, "Cluster").values():
        for each in cluster["spec"]["managed"]["services"]["additional"]:
            there[each["serviceTemplate"]["metadata"]["name"]] = {5432}
    for name, secret in secrets.items():
        for url in (value for key, value in secret.items() if key.endswith("_url")):
            host, port = re.findall(r"@([a-z0-9-]+):(\d+)", url)[0]
            assert int(port) in there[host], name


def test_the_roles_of_postgres_are_those_of_the_services(secrets: Mapping[str, Mapping[str, str]]) -> None:
    (cluster,) = of_kind(rendered("prod"), "Cluster").values()
    roles = {role["name"]: role for role in cluster["spec"]["managed"]["roles"]}
    assert set(roles) == {role_of(user) for user in everybody()}
    for name, role in roles.items():
        secret = secrets[role["passwordSecret"]["name"]]
        assert secret["username"] == name
        user = name.removeprefix("boxoffice_")
        assert f":{secret['password']}@" in secrets[f"boxoffice-{user}"]["database_url"]
    script = (K8S / "components/postgres-cnpg/roles.sql").read_text()
    assert script.partition("\n")[2].strip() == postgres_roles().strip(), (
        "make it anew from common.rights.postgres_roles()"
    )


def test_letters_have_one_order_everywhere() -> None:
    """And capitals are found by small ones, whatever the language; as `boxoffice up` and compose have it."""
    (cluster,) = of_kind(rendered("prod"), "Cluster").values()
    made = cluster["spec"]["bootstrap"]["initdb"]
    wanted = f"--encoding={made['encoding']} --locale-provider={made['localeProvider']}"
    wanted += f" --builtin-locale={made['builtinLocale']}"
    compose = yaml.safe_load(Path("deploy/compose.yaml").read_text())["services"]["postgres"]
    postgres = workloads(rendered("dev"))["postgres"]
    (given,) = [each["value"] for each in container(postgres)["env"] if each["name"] == "POSTGRES_INITDB_ARGS"]
    assert wanted == given == compose["environment"]["POSTGRES_INITDB_ARGS"]
    assert all(f'"{part}"' in inspect.getsource(servers) for part in wanted.split()[1:])


def test_postgres_has_a_connection_for_each_that_may_be_opened() -> None:
    objects = rendered("prod")
    pods = {name: each["spec"].get("replicas", 2) for name, each in services_in(objects).items()}
    pods |= {name: each["spec"]["maxReplicaCount"] for name, each in of_kind(objects, "ScaledObject").items()}
    pods |= {name: each["spec"]["maxReplicas"] for name, each in of_kind(objects, "HorizontalPodAutoscaler").items()}
    opened = sum((count + 1) * (40 if name == "batch" else 16) for name, count in pods.items() if name in WITH_DATABASE)
    (cluster,) = of_kind(objects, "Cluster").values()
    assert opened <= int(cluster["spec"]["postgresql"]["parameters"]["max_connections"])


def test_only_listeners_whose_events_do_not_wait_for_a_time_are_scaled_by_them() -> None:
    objects = rendered("prod")
    seen = set()
    for name, each in of_kind(objects, "ScaledObject").items():
        assert each["spec"]["scaleTargetRef"]["name"] == name
        assert each["spec"]["minReplicaCount"] >= 2
        for trigger in each["spec"]["triggers"]:
            if trigger["type"] != "nats-jetstream":
                continue
            said = trigger["metadata"]
            consumer = topology.CONSUMER[said["consumer"]]
            assert (consumer.stream, consumer.service) == (said["stream"], name)
            assert said["natsServerMonitoringEndpoint"] == f"nats-headless.{NAMESPACE}.svc:8222"
            seen.add(consumer.durable)
    waiting = {"expiration-hold-orders", "batch-release", "batch-abandon", "notification-deliver-webhooks"}
    scaled = of_kind(objects, "ScaledObject")  # others hear little, and are scaled by how busy they are
    assert seen == {each.durable for each in topology.CONSUMERS if each.service in scaled} - waiting
    assert "expiration" not in of_kind(objects, "ScaledObject", "HorizontalPodAutoscaler")


def test_who_scales_a_deployment_is_not_overruled() -> None:
    objects = rendered("prod")
    scaled = of_kind(objects, "ScaledObject", "HorizontalPodAutoscaler")
    for name, each in services_in(objects).items():
        assert ("replicas" in each["spec"]) == (name not in scaled)
    assert set(scaled) == set(SERVICES) - {"expiration"}


def test_prometheus_finds_every_service() -> None:
    objects = rendered("prod")
    (monitor,) = of_kind(objects, "PodMonitor").values()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    found = [name for name, each in workloads(objects).items() if matches(monitor["spec"]["selector"], labels(each))]
    assert sorted(found) == sorted(SERVICES)
    assert all(endpoint["port"] in ports(workloads(objects)[name]) for name in found)


def test_traces_may_go_where_they_are_sent(with_all: list[Object]) -> None:
    (settings,) = [each["data"] for name, each in of_kind(with_all, "ConfigMap").items() if name.startswith("settings")]
    load(Settings, settings)
    rules = of_kind(with_all, "NetworkPolicy")["to-collector"]["spec"]["egress"]
    number = int(settings["BOXOFFICE_OTLP_ENDPOINT"].rpartition(":")[2])
    assert opens(rules, "to", {}, OUTSIDE["monitoring"], {"number": number})


# Images, and Skaffold


@pytest.fixture(params=[None, "dev", "debug", "prod", "ci"])
def skaffold(request: pytest.FixtureRequest) -> Object:
    """The configuration of Skaffold, with what a profile replaces."""
    config: Object = yaml.safe_load(Path("skaffold.yaml").read_text())
    profiles = {profile["name"]: profile for profile in config["profiles"]}
    profile = profiles[request.param] if request.param else {}
    for key in ("build", "manifests", "deploy"):
        config[key] = config[key] | profile.get(key, {})
    config["portForward"] = profile.get("portForward", config["portForward"])
    config["portForward"] += [
        patch["value"] for patch in profile.get("patches", []) if patch["path"] == "/portForward/-"
    ]
    return config


def test_skaffold_builds_what_runs(skaffold: Object) -> None:
    (path,) = skaffold["manifests"]["kustomize"]["paths"]
    objects = rendered(Path(path).name)
    images = {container(each)["image"].partition(":")[0] for each in workloads(objects).values()}
    (artifact,) = skaffold["build"]["artifacts"]
    assert artifact["image"] in images
    for name, each in workloads(objects).items():
        ours = name in {*SERVICES, *OPERATIONS} or name.startswith("migrate")
        assert (container(each)["image"].partition(":")[0] == artifact["image"]) == ours
    of_developers = artifact["docker"].get("target") == "dev"
    assert of_developers == ("sync" in artifact) == (Path(path).name in WRITABLE)
    for each in services_in(objects).values():
        assert ("--reload" in container(each)["args"]) == (of_developers and "command" not in container(each))
    for rule in artifact.get("sync", {}).get("manual", []):
        assert any(Path().glob(rule["src"])), rule
        assert rule["dest"] == "/app"  # where that stage of the Dockerfile has the code
        assert f"COPY --chown=10001:10001 {rule['src'].partition('/')[0]} " in Path("deploy/Dockerfile").read_text()


def test_skaffold_brings_ports_here_that_there_are(skaffold: Object) -> None:
    objects = rendered(Path(skaffold["manifests"]["kustomize"]["paths"][0]).name)
    for each in skaffold["portForward"]:
        kind = each["resourceType"].capitalize()
        found = of_kind(objects, kind)[each["resourceName"]]
        there = [port["port"] for port in found["spec"]["ports"]] if kind == "Service" else ports(found).values()
        assert each["port"] in there
        assert each["namespace"] == NAMESPACE
        assert "address" not in each, "of this machine only"
        if each["localPort"] == 8080:
            assert each["resourceName"] == "gateway", "the one address of all services"
    local = [each["localPort"] for each in skaffold["portForward"]]
    assert len(set(local)) == len(local)


def test_skaffold_makes_no_secrets_for_a_shop_that_is_open(skaffold: Object) -> None:
    (path,) = skaffold["manifests"]["kustomize"]["paths"]
    (hook,) = skaffold["deploy"]["kubectl"]["hooks"]["before"] if "deploy" in skaffold else []
    script = hook["host"]["command"][2]
    assert "delete job" in script, "which cannot be changed"
    assert ("boxoffice secrets" in script) == (path != "k8s/overlays/prod")


def test_skaffold_builds_from_stages_that_there_are(skaffold: Object) -> None:
    (artifact,) = skaffold["build"]["artifacts"]
    dockerfile = Path(artifact["docker"]["dockerfile"])
    stages = re.findall(r"^FROM \S+ AS (\S+)", dockerfile.read_text(), re.MULTILINE)
    assert artifact["docker"].get("target", "runtime") in stages
    assert stages[-1] == "runtime", "what is built when no stage is named"


def test_images_of_others_are_those_of_compose(objects: list[Object]) -> None:
    compose = set(re.findall(r"^ +image: ([a-z]+:\S+)$", Path("deploy/compose.yaml").read_text(), re.MULTILINE))
    for each in workloads(objects).values():
        image = container(each)["image"]
        assert image.startswith("boxoffice") or image in compose


def test_another_version_has_another_job() -> None:
    (job,) = of_kind(rendered("prod"), "Job").values()
    tag = container(job)["image"].partition(":")[2]
    assert tag
    assert job["metadata"]["name"] == f"migrate-{tag}"
