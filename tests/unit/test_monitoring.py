"""What is in deploy/monitoring says nothing that the code does not have."""

import re

import click
import yaml
from prometheus_client import REGISTRY

from common.metrics import Process
from services.cli.main import cli
from services.cli.system import SERVICES
from tests.monitoring import ALERTS, DASHBOARD, MONITORING, expressions, names_in

FROM_PROMETHEUS = {"job", "instance", "le", "alertname", "alertstate"}


def metrics() -> dict[str, tuple[str, ...]]:
    """Every metric of ours with its labels."""
    known = {}
    for collector in set(REGISTRY._collector_to_names):  # noqa: SLF001 (prometheus-client has no other way)
        name, labels = getattr(collector, "_name", ""), getattr(collector, "_labelnames", ())
        if name.startswith("boxoffice_"):
            known[name + ("_total" if getattr(collector, "_type", "") == "counter" else "")] = labels
    for family in Process([], lambda: True).collect():
        known[family.name] = tuple(getattr(family, "_labelnames", ()))
    return known


def labels_in(expression: str) -> set[str]:
    """The labels that an expression names."""
    by = re.findall(r"\bby \(([^)]*)\)", expression)
    matched = re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", expression)
    return {label.strip() for group in by for label in group.split(",")} | set(matched)


def test_every_metric_that_is_asked_for_exists_and_has_these_labels() -> None:
    known = metrics()
    for where, expression in expressions().items():
        labels = set(FROM_PROMETHEUS)
        for name in names_in(expression):
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            if name != "up" and not name.startswith("process_"):
                assert base in known or name in known, f"{where}: there is no {name}"
            labels |= set(known.get(name, known.get(base, ())))
        assert labels_in(expression) <= labels, where


def test_every_metric_is_in_the_table_with_its_labels() -> None:
    told = (MONITORING / "README.md").read_text()
    table = dict(re.findall(r"^\| `(boxoffice_\w+)` \| ([^|]*)\|", told, re.MULTILINE))
    written = {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in table.items()}
    assert written == metrics()


def test_every_alert_is_explained() -> None:
    told = (MONITORING / "README.md").read_text()
    assert {name for name in ALERTS if f"`{name}`" not in told} == set()
    assert len(re.findall(r"^\| `[A-Z]\w+` \|", told, re.MULTILINE)) == len(ALERTS)


def command(words: list[str]) -> bool:
    """Whether `boxoffice` has a command of these words."""
    at: click.Command | None = cli
    for word in words:
        at = at.commands.get(word) if isinstance(at, click.Group) else None
    return at is not None


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for name, alert in ALERTS.items():
        assert alert["labels"]["severity"] in {"critical", "warning"}, name
        assert alert["annotations"]["summary"], name
        named = re.findall(r"`boxoffice ([^`]+)`", alert["annotations"]["action"])
        assert named or name == "NoCommand", name
        for line in named:
            first, *rest = line.split()
            group = cli.commands[first]
            assert command([first, rest[0]] if isinstance(group, click.Group) else [first]), f"{name}: boxoffice {line}"


def test_all_services_are_scraped_and_missed() -> None:
    (job,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    (scraped,) = [found["names"] for found in job["dns_sd_configs"]]
    (missed,) = re.findall(r'job=~"([a-z|]+)"', ALERTS["ServiceAway"]["expr"])
    assert sorted(scraped) == sorted(missed.split("|")) == sorted(SERVICES)


def test_the_dashboard_has_the_rows_and_its_variables() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Sale", "Log", "Listeners", "Projections", "Expiration", "Batch", "Sockets", "Infrastructure"]
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "service"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
