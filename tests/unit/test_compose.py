"""deploy/compose.yaml is held to what it runs: services, settings, files, ports, and what a container may do."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.http import DOCUMENTED
from common.rights import MIGRATE
from common.settings import FILE, PREFIX, Settings, load
from services.cli.secrets import NODES, for_compose
from services.cli.system import SERVICES
from tests.routes import routes

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
ONCE = {"roles", MIGRATE}
"""Containers that end when they are done."""

VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?([^}]*))?\}")


def compose(**environment: str) -> dict[str, Any]:
    """The file, with the variables that compose replaces; raises ValueError for one that has to be set."""

    def value(found: re.Match[str]) -> str:
        name, default, demand = found.groups()
        if name in environment:
            return environment[name]
        if demand:
            raise ValueError(f"{name} {demand}")
        return default or ""

    def replaced(part: Any) -> Any:
        """As compose does it: in texts, once the file was read."""
        if isinstance(part, dict):
            return {key: replaced(each) for key, each in part.items()}
        if isinstance(part, list):
            return [replaced(each) for each in part]
        return VARIABLE.sub(value, part) if isinstance(part, str) else part

    told: dict[str, Any] = replaced(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))
    return told


SYSTEM = compose(BOXOFFICE_AUTH="on")
CONTAINERS: Mapping[str, Mapping[str, Any]] = SYSTEM["services"]
OURS = {name: each for name, each in CONTAINERS.items() if name in (*SERVICES, MIGRATE)}


def test_every_service_is_there_once() -> None:
    others = {*NODES, "postgres", *ONCE, "gateway", "prometheus", "grafana"}
    assert set(CONTAINERS) == set(SERVICES) | others
    for name in SERVICES:
        assert CONTAINERS[name]["command"] == ["serve", name]


def test_compose_itself_takes_it(tmp_path: Path) -> None:
    """Which needs its program, and no engine."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no `docker compose` here")
    for_compose(tmp_path / "secrets")
    told = ("--file", DEPLOY / "compose.yaml", "--project-directory", tmp_path, "--profile", "*")
    done = subprocess.run(
        [docker, "compose", *told, "config", "--quiet"],
        env={**os.environ, "BOXOFFICE_AUTH": "dev"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_who_is_let_in_has_to_be_said() -> None:
    with pytest.raises(ValueError, match=r"BOXOFFICE_AUTH is not set.*BOXOFFICE_AUTH=dev.*BOXOFFICE_AUTH=on"):
        compose()


@pytest.mark.parametrize("name", OURS)
def test_its_variables_are_settings_and_its_secrets_are_files_that_are_made(name: str, tmp_path: Path) -> None:
    for_compose(tmp_path)
    kind = Settings if name == MIGRATE else SERVICES[name][1]
    given = {key: str(value) for key, value in OURS[name]["environment"].items()}
    known = {PREFIX + field.upper() for field in kind.__struct_fields__}
    assert {key.removesuffix(FILE) for key in given} <= known
    assert f"./secrets/{name}:/run/secrets:ro" in OURS[name]["volumes"]
    here = {key: value.replace("/run/secrets", str(tmp_path / name)) for key, value in given.items()}
    settings = load(kind, here, of=name)
    assert settings.nats_url.startswith(f"nats://{name}:")
    files = {f"{PREFIX}{path.name.upper()}{FILE}" for path in (tmp_path / name).iterdir()}
    assert {key for key in given if key.endswith(FILE)} == files
    assert settings.auth == "on"
    assert settings.trusted_proxies == SYSTEM["networks"]["inside"]["ipam"]["config"][0]["subnet"]


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_may_do_little_and_ends_in_order(name: str) -> None:
    container = CONTAINERS[name]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert "cap_add" not in container
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert container["restart"] == ("on-failure" if name == "roles" or name == MIGRATE else "unless-stopped")
    if name not in ONCE:
        assert {"cpus", "mem_limit"} <= set(container)
    if name in (*SERVICES, *NODES, "postgres", "gateway"):
        assert int(container["stop_grace_period"].removesuffix("s")) >= 30
    for port in container.get("ports", ()):
        assert name in {"gateway", "prometheus", "grafana"}
        assert port.startswith("127.0.0.1:")
    for variable, value in container.get("environment", {}).items():
        if re.search("PASSWORD|SECRET|KEY", variable):
            assert variable.endswith(FILE), f"{variable}={value}"


def test_only_who_has_to_gets_out() -> None:
    out = {name for name, container in CONTAINERS.items() if "outside" in container["networks"]}
    assert out == {"gateway", "identity", "notification", "prometheus", "grafana"}
    assert SYSTEM["networks"]["inside"]["internal"] is True


def test_every_file_that_is_mounted_is_there(tmp_path: Path) -> None:
    for_compose(tmp_path)
    volumes = set(SYSTEM["volumes"])
    for name, container in CONTAINERS.items():
        sources = [mount.split(":")[0] for mount in container.get("volumes", ())]
        sources += [f"./{container['env_file']}"] if "env_file" in container else []
        for source in sources:
            if source.startswith("./secrets/"):
                assert (tmp_path / source.removeprefix("./secrets/")).exists(), (name, source)
            else:
                assert source in volumes or (DEPLOY / source).exists(), (name, source)


def test_nobody_begins_before_what_it_needs() -> None:
    for name in SERVICES:
        assert CONTAINERS[name]["depends_on"] == {MIGRATE: {"condition": "service_completed_successfully"}}
    before = CONTAINERS[MIGRATE]["depends_on"]
    assert set(before) == {"roles", *NODES}
    assert set(CONTAINERS["gateway"]["depends_on"]) == set(SERVICES)
    assert CONTAINERS[MIGRATE]["environment"]["BOXOFFICE_REPLICAS"] == len(NODES)


def test_the_nodes_are_those_that_the_secrets_name(tmp_path: Path) -> None:
    for_compose(tmp_path)
    routes = re.search(r"NATS_ROUTES=(.*)", (tmp_path / "nats.env").read_text())
    assert routes
    for node in NODES:
        assert f"@{node}:6222" in routes[1]
        assert f"@{node}:4222" in (tmp_path / "orders" / "nats_url").read_text()
        assert CONTAINERS[node]["environment"]["NATS_SERVER_NAME"] == node


def test_the_gateway_and_prometheus_ask_where_services_listen() -> None:
    image = (DEPLOY / "Dockerfile").read_text()
    port = re.search(r"BOXOFFICE_PORT=(\d+)", image)
    assert port
    upstreams = dict(
        re.findall(
            r"upstream (\w+) +\{ zone \w+ 64k; +server (\S+) resolve; \}",
            (DEPLOY / "gateway/upstreams.conf").read_text(),
        )
    )
    assert upstreams == {name: f"{name}:{port[1]}" for name in SERVICES if name != "expiration"}
    scraped = yaml.safe_load((DEPLOY / "monitoring/prometheus.yml").read_text())["scrape_configs"][0]
    (found,) = scraped["dns_sd_configs"]
    assert found["port"] == CONTAINERS["orders"]["environment"]["BOXOFFICE_METRICS_PORT"]
    assert set(found["names"]) == set(SERVICES)


def service_at(path: str, rules: Sequence[tuple[str, str]]) -> str:
    """Where nginx leads a path, by what its `map` has: what is equal, else the first pattern, else the default."""
    exact = dict(rules)
    if path in exact:
        return exact[path]
    for pattern, service in rules:
        if pattern.startswith("~") and (found := re.search(pattern[1:].replace("(?<", "(?P<"), path)):
            return found[service[1:]] if service.startswith("$") else service
    return exact["default"]


async def test_the_gateway_leads_every_path_to_the_service_that_has_it() -> None:
    told = (DEPLOY / "gateway/nginx.conf").read_text().partition("map $uri $service {\n")[2].partition("\n    }")[0]
    rules = re.findall(r"^ +(\S+) +(\$?\w+);$", told, re.MULTILINE)
    assert len(rules) == len(told.splitlines())
    for name, paths in (await routes()).items():
        for path in paths:
            assert service_at(path, rules) == name, path


async def test_the_page_of_documentation_shows_every_service_that_has_some() -> None:
    assert [name for name, paths in sorted((await routes()).items()) if f"/api/openapi/{name}.json" in paths] == [
        *DOCUMENTED
    ]
