"""The whole system as it is deployed: three nodes of NATS, each service a process of its own, one origin in front."""

import asyncio
import json
import os
import random
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import websockets

from common import topology
from common.http import DOCUMENTED
from common.runtime import connect
from tests.cluster import NO_NGINX, Cluster, Node, deployed, finished
from tests.harness import ServiceProcess, eventually
from tests.system.checker import check, collect
from tests.system.test_faults import ANSWER_SECONDS, GRACE, SETTLE_SECONDS, Town, buy, restless, sell

BUYERS = 6
REPLICAS = {"tickets": 2, "orders": 2, "expiration": 2}
ADA = {"Authorization": "Bearer dev:ada"}


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    """All of it."""
    with tempfile.TemporaryDirectory(prefix="boxoffice-test-", ignore_cleanup_errors=True) as folder:
        async with deployed(Path(folder), REPLICAS) as cluster:
            yield cluster


async def restart(process: ServiceProcess) -> None:
    """As a rolling update does: SIGTERM, wait until it has ended in order, and then the next one."""
    assert await process.stop() == 0, process.tail()
    await process.start()


async def leader(cluster: Cluster, stream: str) -> str:
    """The node that leads a stream."""
    async with connect(cluster.settings, "operator") as platform:
        told = (await platform.client.jetstream().stream_info(stream)).cluster
    assert told is not None
    assert told.leader is not None
    return told.leader


@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.faults)])
async def test_a_node_is_killed_and_every_service_restarted_under_load(cluster: Cluster, rounds: int) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"{seed=}")  # noqa: T201 (whoever reads a failure needs it)

    def rng(who: str) -> random.Random:
        return random.Random(f"{seed} {who}")  # noqa: S311 (a load, no secret)

    at = cluster.gateway
    town = Town(cluster.settings, at or cluster.services["tickets"][0], [at] if at else cluster.services["orders"], {})
    try:
        async with asyncio.TaskGroup() as people:
            people.create_task(sell(town, rng("seller")))
            await asyncio.wait_for(town.open.wait(), ANSWER_SECONDS)
            for number in range(BUYERS):
                people.create_task(buy(town, f"buyer-{number}", rng(f"buyer {number}")))
            for _ in range(rounds):
                await town.more_acknowledged(5)
                node = cluster.nodes[await leader(cluster, "ORDERS")]
                await asyncio.to_thread(node.kill)
                await town.more_acknowledged(5)
                await node.start()
                await eventually(node.healthy, wanted=True, within=ANSWER_SECONDS)
                for each in range(max(REPLICAS.values())):  # of all services at once, as an upgrade does
                    await town.more_acknowledged(5)
                    async with asyncio.TaskGroup() as restarting:
                        for replicas in cluster.services.values():
                            for process in replicas[each : each + 1]:
                                restarting.create_task(restart(process))
            await town.more_acknowledged(5)
            town.closing.set()
        async with connect(cluster.settings, "checker") as platform:
            with suppress(AssertionError):  # the checker says it better
                await eventually(lambda: restless(platform), 0, within=SETTLE_SECONDS)
            evidence = await collect(cluster.settings)
            assert check(evidence, town.promises, GRACE) == []
            assert await restless(platform) == 0
        print(f"{town.answers=}, placed {len(town.promises.placed)}, paid {len(town.promises.paid)}")  # noqa: T201
        if cluster.gateway:  # which tells of each service that is away in words
            assert not [kind for kind in town.answers if " " not in kind], town.answers
    finally:
        await town.close()


async def test_what_is_acknowledged_is_on_the_disks_of_three_nodes(cluster: Cluster) -> None:
    async with httpx.AsyncClient() as http:
        for node in cluster.nodes.values():
            told = (await http.get(f"{node.monitoring}/jsz")).json()
            assert told["config"]["sync_always"] is True
            assert (await http.get(f"{node.monitoring}/varz")).json()["auth_required"] is True
    async with connect(cluster.settings, "operator") as platform:
        assert [trouble async for _, trouble in topology.inspect(platform.client, replicas=3) if trouble] == []


async def test_nodes_read_anew_who_may_do_what_and_let_nobody_go(cluster: Cluster) -> None:
    async with connect(cluster.settings, "operator") as platform:
        for node in cluster.nodes.values():
            os.kill(node.pid, signal.SIGHUP)  # as an upgrade of compose does it

            async def read(node: Node = node) -> bool:
                return "Reloaded server configuration" in node.log_file.read_text()

            await eventually(read, wanted=True)
        assert platform.client.stats["reconnects"] == 0


@pytest.fixture
def origin(cluster: Cluster) -> str:
    """The one address of the gateway."""
    if cluster.gateway is None:
        pytest.skip(NO_NGINX)
    return cluster.gateway.url


async def test_a_whole_sale_goes_through_the_gateway(origin: str) -> None:
    await finished(sys.executable, "-m", "services.cli.main", "demo", "--url", origin)


async def test_each_path_leads_to_its_service(origin: str) -> None:
    async with httpx.AsyncClient(base_url=origin, headers=ADA) as http:
        for path, status in {
            "/": 200,
            "/system": 200,
            "/login": 200,
            "/clock": 200,
            "/.well-known/jwks.json": 200,
            "/api/tickets": 200,
            "/api/orders": 200,
            "/api/batches": 200,
            "/api/batch-kinds": 200,
            "/api/templates": 200,
            "/api/notifications/inbox": 200,
            "/api/notifications/client.js": 200,
            "/api/webhooks": 200,
            "/api/auth/providers": 200,
            "/api/events/types": 403,  # for operators
            "/api/system": 403,
            "/api/nothing": 404,
            "/metrics": 404,
            "/health/ready": 200,
        }.items():
            assert ((await http.get(path, follow_redirects=True)).status_code, path) == (status, path)


async def test_each_operation_is_asked_of_the_service_that_has_it(cluster: Cluster, origin: str) -> None:
    schemas: dict[str, object] = {}
    async with httpx.AsyncClient(base_url=origin) as http:
        for name, (process, *_) in cluster.services.items():
            own = (await http.get(f"{process.url}/api/openapi.json")).json()
            through = await http.get(f"/api/openapi/{name}.json")
            assert (through.status_code == 200) == (name in DOCUMENTED) == bool(own["paths"]), name
            if name not in DOCUMENTED:
                continue
            assert through.json() == own
            for path in own["paths"]:
                asked = await http.options(re.sub(r"{\w+}", "01920c3c-7a3e-7cc4-8a3e-3d1f0c5b9a10", path))
                assert (asked.status_code, path) == (204, path)
            for schema, shape in own["components"]["schemas"].items():
                assert schemas.setdefault(schema, shape) == shape, f"{schema} is two things; one document shows one"
        page = await http.get("/api/docs/start.js")
    assert json.dumps([f"/api/openapi/{name}.json" for name in DOCUMENTED]) in page.text


async def test_what_is_too_large_is_refused_in_words(origin: str) -> None:
    async with httpx.AsyncClient(base_url=origin, headers=ADA) as http:
        body = await http.post("/api/orders", content=b"[" + b" " * 1_100_000 + b"]")
        assert (body.status_code, body.headers["content-type"]) == (413, "application/problem+json")
        head = await http.get("/api/tickets", headers={"X-Large": "x" * 33_000})
        assert (head.status_code, head.headers["content-type"]) == (431, "application/problem+json")
        address = await http.get("/api/tickets?after=" + "x" * 9_000)
        assert (address.status_code, address.headers["content-type"]) == (414, "application/problem+json")


async def test_notifications_come_through_as_they_happen(origin: str) -> None:
    show = {"title": "Matinee", "price": 100, "currency": "EUR", "quantity": 5}
    address = origin.replace("http", "ws", 1) + "/api/notifications/ws"
    async with httpx.AsyncClient(base_url=origin, headers=ADA, timeout=30) as http, asyncio.timeout(60):
        listed = await http.post("/api/tickets", json=show)
        assert listed.status_code == 201, listed.text
        async with (
            websockets.connect(address, additional_headers=ADA, proxy=None) as socket,
            http.stream("GET", "/api/notifications/stream") as stream,
        ):
            ordered = await http.post("/api/orders", json={"ticket_id": listed.json()["id"], "quantity": 1})
            assert ordered.status_code == 201, ordered.text
            async for message in socket:
                if "Matinee" in str(message):
                    break
            async for line in stream.aiter_lines():
                if "Matinee" in line:
                    break
