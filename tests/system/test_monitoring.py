"""Alerts and dashboard, tried by a real Prometheus on what the running system really tells."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from common.runtime import Platform
from common.topology import CONSUMERS, STREAMS
from services.cli.servers import free_port
from services.cli.system import SERVICES
from tests.harness import ServiceProcess, eventually, figure
from tests.monitoring import ALERTS, MONITORING, expressions, names_in

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not installed (Debian: apt install prometheus)",
)

SELLER = {"Authorization": "Bearer dev:sam:seller"}
BUYER = {"Authorization": "Bearer dev:ada"}
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 3}
QUIET = {
    "boxoffice_appends_in_doubt_total",
    "boxoffice_batch_retries_total",
    "boxoffice_limited_requests_total",
    "boxoffice_spans_total",
    "boxoffice_webhook_attempts_total",
    "boxoffice_webhooks_parked_total",
}
"""Has no series before it happens the first time, and does not in this sale."""


class Shop(msgspec.Struct):
    """All services in one process, which is scraped on a port of its own."""

    process: ServiceProcess
    metrics: str

    async def told(self) -> str:
        async with httpx.AsyncClient() as http:
            return (await http.get(self.metrics)).text


@pytest.fixture
async def shop(platform: Platform, home: Path) -> AsyncIterator[Shop]:
    port = free_port()
    variables = {"BOXOFFICE_METRICS_PORT": str(port), "BOXOFFICE_LOG_BYTES": str(10**10)}
    async with ServiceProcess(" ".join(SERVICES), platform.settings, home, **variables) as process:
        yield Shop(process, f"http://127.0.0.1:{port}/metrics")


async def sell(shop: Shop) -> None:
    """An order that expires, a batch, and somebody who is told of both."""
    async with httpx.AsyncClient(base_url=shop.process.url, timeout=30) as http:
        ticket = (await http.post("/api/tickets", json=SHOW, headers=SELLER)).json()["id"]
        order = {"ticket_id": ticket, "quantity": 1, "hold_seconds": 1}
        assert (await http.post("/api/orders", json=order, headers=BUYER)).status_code == 201
        rows = "key,value\ngreeting,hello\n"
        batch = await http.post(
            "/api/batches?kind=records.insert", content=rows, headers=SELLER | {"Content-Type": "text/csv"}
        )
        assert batch.status_code in (201, 202), batch.text
        told = await http.get("/api/notifications?after=0&wait=20", headers=BUYER)
        assert told.status_code == 200, told.text
    await asyncio.to_thread(refused, shop.process.port)

    async def done() -> bool:
        text = await shop.told()
        return all(
            figure(text, name) > 0
            for name in ("boxoffice_expiry_lateness_seconds_count", "boxoffice_batch_operations_total")
        )

    await eventually(done, True)


def refused(port: int) -> None:
    """Say what is no HTTP."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as door:
        door.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        door.recv(1)


async def test_what_alerts_and_dashboard_ask_for_is_told(shop: Shop) -> None:
    await sell(shop)
    text = await shop.told()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    told = {family.name for family in families.values()} | {
        sample.name for family in families.values() for sample in family.samples
    }
    told |= {f"{family.name}_total" for family in families.values() if family.type == "counter"}
    asked = {name for expression in expressions().values() for name in names_in(expression)}
    assert asked - told == {"up"}  # which Prometheus makes

    async def looked() -> bool:
        text = await shop.told()  # of a look after the sale
        behind = figure(text, "boxoffice_read_model_lag_events") + figure(text, "boxoffice_listener_pending")
        return behind == 0 and figure(text, "boxoffice_stream_messages", stream="EXPIRATION") == 1

    await eventually(looked, True)
    text = await shop.told()
    for stream in STREAMS:
        assert figure(text, "boxoffice_stream_leader", stream=stream.name) == 1
    for consumer in CONSUMERS:
        assert figure(text, "boxoffice_listener_there", listener=consumer.durable) == 1
    assert figure(text, "boxoffice_stream_bytes") > 0
    assert figure(text, "boxoffice_read_model_stopped") == 0
    assert figure(text, "boxoffice_worker_problem") == 0
    assert figure(text, "boxoffice_nats_connected") == 1
    assert figure(text, "boxoffice_build_info") == len(SERVICES)
    assert figure(text, "boxoffice_service_processes", service="orders") == 1
    async with httpx.AsyncClient() as http:  # the world sees none of it
        assert (await http.get(f"{shop.process.url}/metrics")).status_code == 404


async def test_nobody_can_add_series(shop: Shop) -> None:
    async with httpx.AsyncClient(base_url=shop.process.url, timeout=30) as http:

        async def ask(n: int) -> None:
            await http.request(f"METHOD{n}", "/api/tickets")
            for path in (f"/nowhere/{n}", f"/api/orders/{n}", f"/api/tickets/{n}?q={n}", f"/{n}"):
                await http.get(path, headers={"Authorization": f"Bearer dev:user{n}", "X-Correlation-Id": f"{n:08}"})

        async def series() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
            found = text_string_to_metric_families(await shop.told())
            return {(each.name, tuple(sorted(each.labels.items()))) for family in found for each in family.samples}

        await ask(0)
        before = await series()
        for n in range(1, 30):
            await ask(n)
        new = {each[0] for each in await series() - before if each[0].startswith("boxoffice_")}
        assert {name for name in new if not name.startswith(LOOKED_AT)} == set()


LOOKED_AT = (
    "boxoffice_stream_",
    "boxoffice_listener_",
    "boxoffice_read_model_",
    "boxoffice_dead_",
    "boxoffice_service_",
)
"""What begins to be told when history has looked; its labels are those of the topology."""


@asynccontextmanager
async def prometheus(home: Path, target: str) -> AsyncIterator[httpx.AsyncClient]:
    """A Prometheus that scrapes `target` as the file says, but more often, with the rules of the file.

    An alert does not wait here: what would fire later, if it stayed so, fires at once.
    """
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    rules = home / "alerts.yaml"
    rules.write_text(re.sub(r"^ +for: .*\n", "", (MONITORING / "alerts.yaml").read_text(), flags=re.MULTILINE))
    config["rule_files"] = [str(rules)]
    (job,) = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [target], "labels": {"__meta_dns_name": "boxoffice"}}]
    file = home / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    port = free_port()
    with (home / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={file}",
            f"--storage.tsdb.path={home / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
            env={**os.environ, "GOMAXPROCS": "1"},
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:

            async def ready() -> bool:
                try:
                    return (await http.get("/-/ready")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(ready, True, within=60)
            yield http
    finally:
        process.terminate()
        await process.wait()


@needs_prometheus
async def test_a_real_prometheus_answers_what_the_dashboard_asks(shop: Shop, home: Path) -> None:
    await sell(shop)
    async with prometheus(home, shop.metrics.removeprefix("http://").removesuffix("/metrics")) as http:
        for where, expression in expressions().items():
            asked = expression.replace("$__rate_interval", "1m").replace("$service", ".*")
            quiet = names_in(asked) & QUIET or where.startswith("alert ")  # an alert that is silent finds nothing

            async def found(asked: str = asked, where: str = where) -> bool:
                answer = (await http.get("/api/v1/query", params={"query": asked})).json()
                assert answer["status"] == "success", f"{where}: {answer}"
                return bool(answer["data"]["result"])

            if quiet:
                await found()
            else:
                await eventually(found, True, within=30)

        async def firing() -> list[str]:
            told = (await http.get("/api/v1/alerts")).json()["data"]["alerts"]
            return [alert["labels"]["alertname"] for alert in told if alert["state"] == "firing"]

        await eventually(firing, ["PageAway"], within=30)  # which has a job of its own elsewhere
        rules = (await http.get("/api/v1/rules")).json()["data"]["groups"]
        assert {rule["name"] for group in rules for rule in group["rules"] if rule["health"] == "ok"} == set(ALERTS)


Series = Mapping[str, str]

TRIED: Mapping[str, tuple[Series, Series]] = {
    "ServiceAway": ({'up{job="orders"}': "0x80"}, {'up{job="orders"}': "1x80", 'up{job="grafana"}': "0x80"}),
    "ServiceMissing": (
        {'boxoffice_service_processes{service="orders",job="history",instance="a"}': "0x80"},
        {'boxoffice_service_processes{service="orders",job="history",instance="a"}': "1 1 0x8 1x70"},
    ),
    "PageAway": (
        {'up{job="web"}': "0x80"},
        {'up{job="web",instance="a"}': "0x80", 'up{job="web",instance="b"}': "1x80"},
    ),
    "PageAway: nobody looks for it": ({'up{job="orders"}': "1x80"}, {'up{job="web"}': "1x80"}),
    "SystemUnseen": ({"boxoffice_system_looked_at_seconds": "0x80"}, {"boxoffice_system_looked_at_seconds": "0+15x80"}),
    "NatsAway": (
        {'boxoffice_nats_connected{job="orders"}': "0x80"},
        {'boxoffice_nats_connected{job="orders"}': "1x80"},
    ),
    "PostgresAway": (
        {'boxoffice_postgres_away{service="orders"}': "1x80"},
        {'boxoffice_postgres_away{service="orders"}': "0x80"},
    ),
    "WorkerStopped": (
        {'boxoffice_worker_problem{service="orders",worker="orders.ORDERS"}': "1x80"},
        {'boxoffice_worker_problem{service="orders",worker="orders.ORDERS"}': "1x15 0x65"},
    ),
    "NoLeader": (
        {'boxoffice_stream_leader{stream="ORDERS"}': "1x10 0x70", 'boxoffice_stream_leader{stream="DEAD"}': "1x80"},
        {'boxoffice_stream_leader{stream="ORDERS"}': "1x80", 'boxoffice_stream_leader{stream="DEAD"}': "1x80"},
    ),
    "LogFills": (
        {
            'boxoffice_stream_bytes{stream="ORDERS",instance="a"}': "500x80",
            'boxoffice_stream_bytes{stream="DEAD",instance="a"}': "400x80",
            'boxoffice_log_limit_bytes{instance="a"}': "1000x80",
        },
        {
            'boxoffice_stream_bytes{stream="ORDERS",instance="a"}': "500x80",
            'boxoffice_stream_bytes{stream="ORDERS",instance="b"}': "500x80",  # a replica tells the same again
            'boxoffice_log_limit_bytes{instance="a"}': "1000x80",
        },
    ),
    "LogFillsSoon": (
        {'boxoffice_stream_bytes{stream="ORDERS"}': "0+10x2000", "boxoffice_log_limit_bytes": "200000x2000"},
        {'boxoffice_stream_bytes{stream="ORDERS"}': "0+10x2000", "boxoffice_log_limit_bytes": "0x2000"},
    ),
    "LogFillsSoon: an hour says nothing of a day": (
        {'boxoffice_stream_bytes{stream="ORDERS"}': "0+10x2000", "boxoffice_log_limit_bytes": "200000x2000"},
        {'boxoffice_stream_bytes{stream="ORDERS"}': "_x1600 0+10x400", "boxoffice_log_limit_bytes": "200000x2000"},
    ),
    "ConflictStorm": (
        {'boxoffice_append_conflicts_total{aggregate="orders"}': "0+900x80"},
        {'boxoffice_append_conflicts_total{aggregate="orders"}': "0+700x80"},
    ),
    "ListenerLags": (
        {'boxoffice_listener_pending{listener="orders-keep-book"}': "1001x80"},
        {
            'boxoffice_listener_pending{listener="orders-keep-book"}': "1000x80",
            'boxoffice_listener_events_total{listener="orders-keep-book",outcome="done"}': "0+1x80",
        },
    ),
    "ListenerLags: some, and nobody hears them": (
        {
            'boxoffice_listener_pending{listener="orders-keep-book",instance="a"}': "3x120",
            'boxoffice_listener_pending{listener="orders-keep-book",instance="b"}': "3x120",
            'boxoffice_listener_events_total{listener="orders-keep-book",outcome="done"}': "7x120",
        },
        {'boxoffice_listener_pending{listener="orders-keep-book"}': "3x50 0 3x70"},
    ),
    "ListenerMissing": (
        {'boxoffice_listener_there{listener="orders-keep-book"}': "0x80"},
        {'boxoffice_listener_there{listener="orders-keep-book"}': "1x80"},
    ),
    "DeadLetters": (
        {'boxoffice_dead_letters_open{listener="orders-keep-book"}': "1x80"},
        {'boxoffice_dead_letters_open{listener="orders-keep-book"}': "0x80"},
    ),
    "ListenerFails": (
        {'boxoffice_listener_events_total{listener="orders-keep-book",outcome="error"}': "0+3x80"},
        {'boxoffice_listener_events_total{listener="expiration-hold-orders",outcome="retry"}': "0+900x80"},
    ),
    "EventUnknown": (
        {'boxoffice_listener_events_total{listener="orders-keep-book",outcome="unknown"}': "0+0.25x80"},
        {'boxoffice_listener_events_total{listener="orders-keep-book",outcome="unknown"}': "0x4 1x3 2x70"},
    ),
    "ProjectorStopped": (
        {'boxoffice_read_model_stopped{read_model="orders",stream="ORDERS"}': "1x80"},
        {'boxoffice_read_model_stopped{read_model="orders",stream="ORDERS"}': "0x80"},
    ),
    "ProjectorLags": (
        {'boxoffice_read_model_lag_events{read_model="orders",stream="ORDERS"}': "1001x80"},
        {
            'boxoffice_read_model_lag_events{read_model="orders",stream="ORDERS"}': "5000-70x70",
            'boxoffice_projected_events_total{projection="orders",stream="ORDERS"}': "0+70x80",
        },
    ),
    "ProjectorLags: some, and nobody writes them": (
        {
            'boxoffice_read_model_lag_events{read_model="orders",stream="ORDERS"}': "3x120",
            'boxoffice_projected_events_total{projection="tickets",stream="ORDERS"}': "0+5x120",
        },
        {
            'boxoffice_read_model_lag_events{read_model="orders",stream="ORDERS"}': "3x120",
            'boxoffice_projected_events_total{projection="orders",stream="ORDERS"}': "0+5x120",
        },
    ),
    "ErrorRate": (
        {
            'boxoffice_http_request_seconds_count{job="orders",route="/api/orders",status="503"}': "0+6x80",
            'boxoffice_http_request_seconds_count{job="orders",route="/api/orders",status="201"}': "0+94x80",
        },
        {
            'boxoffice_http_request_seconds_count{job="orders",route="/health/ready",status="503"}': "0+50x80",
            'boxoffice_http_request_seconds_count{job="orders",route="/api/orders",status="409"}': "0+50x80",
            'boxoffice_http_request_seconds_count{job="orders",route="/api/orders",status="503"}': "0+4x80",
            'boxoffice_http_request_seconds_count{job="orders",route="/api/orders",status="201"}': "0+46x80",
        },
    ),
    "ExpiryLate": (
        {
            'boxoffice_expiry_lateness_seconds_bucket{le="1.0"}': "0+90x80",
            'boxoffice_expiry_lateness_seconds_bucket{le="5.0"}': "0+100x80",
            'boxoffice_expiry_lateness_seconds_bucket{le="+Inf"}': "0+100x80",
        },
        {
            'boxoffice_expiry_lateness_seconds_bucket{le="1.0"}': "0+100x80",
            'boxoffice_expiry_lateness_seconds_bucket{le="5.0"}': "0+100x80",
            'boxoffice_expiry_lateness_seconds_bucket{le="+Inf"}': "0+100x80",
        },
    ),
    "ExpiryLate: few, and each an hour": (
        {
            'boxoffice_expiry_lateness_seconds_bucket{le="1.0"}': "0x120",
            'boxoffice_expiry_lateness_seconds_bucket{le="3600.0"}': "0 1x23 2x23 3x23 4x23 5x23",
            'boxoffice_expiry_lateness_seconds_bucket{le="+Inf"}': "0 1x23 2x23 3x23 4x23 5x23",
        },
        {
            'boxoffice_expiry_lateness_seconds_bucket{le="1.0"}': "0 1x23 2x23 3x23 4x23 5x23",
            'boxoffice_expiry_lateness_seconds_bucket{le="3600.0"}': "0 1x23 2x23 3x23 4x23 5x23",
            'boxoffice_expiry_lateness_seconds_bucket{le="+Inf"}': "0 1x23 2x23 3x23 4x23 5x23",
        },
    ),
    "BatchWaits": (
        {'boxoffice_batch_queue_oldest_seconds{priority="high"}': "0+15x80"},
        {'boxoffice_batch_queue_oldest_seconds{priority="low"}': "0+15x80"},
    ),
    "TracesLost": (
        {'boxoffice_spans_total{job="orders",outcome="lost"}': "0+10x80"},
        {'boxoffice_spans_total{job="orders",outcome="exported"}': "0+10x80"},
    ),
}
"""Of each alert series, a value each 15 s, of which it fires within 25 minutes, and such of which it does not."""


def of_each_alert() -> list[dict[str, Any]]:
    """The tests for promtool."""
    made = []
    for name, both in TRIED.items():
        alert = name.partition(":")[0]
        at = "8h" if alert == "LogFillsSoon" else "24m" if ":" in name else "19m"
        for fires, series in zip((True, False), both, strict=True):
            firing = {"expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})', "eval_time": at}
            made.append(
                {
                    "name": f"{name} {'fires' if fires else 'is silent'}",
                    "interval": "15s",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "promql_expr_test": [{**firing, "exp_samples": [{"labels": "{}", "value": 1}] if fires else []}],
                }
            )
    return made


@needs_prometheus
def test_each_alert_fires_when_it_should_and_is_silent_otherwise(tmp_path: Path) -> None:
    assert {name.partition(":")[0] for name in TRIED} == set(ALERTS)
    checked = subprocess.run(
        ["promtool", "check", "rules", str(MONITORING / "alerts.yaml")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    file = tmp_path / "alerts.test.yaml"
    file.write_text(
        yaml.safe_dump(
            {"rule_files": [str(MONITORING / "alerts.yaml")], "evaluation_interval": "15s", "tests": of_each_alert()}
        )
    )
    tried = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert tried.returncode == 0, re.sub(r"\n{2,}", "\n", tried.stdout + tried.stderr)
