"""What the log promises on three nodes: the stream's leader may die, and nothing that was acknowledged is lost."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from common import snapshots, topology
from common.clock import FIRST
from common.errors import Unavailable
from common.event_log import JetStreamLog
from common.rights import MIGRATE, nats_users
from common.runtime import Platform, connect
from common.settings import Settings
from services.cli.backup import back_up, lost_by, restore_log
from services.cli.embedded import with_login
from services.cli.servers import NatsServer
from tests.cluster import migrate_cluster, three_nodes
from tests.facts import STREAM, draft, drafts, first, numbers, whole
from tests.harness import PASSWORDS, eventually
from tests.integration.test_event_log_faults import Load, follow_until_told

A = "expiration.a"


@pytest.fixture
async def nodes(home: Path) -> AsyncIterator[dict[str, NatsServer]]:
    """Three nodes of one cluster, by name."""
    async with three_nodes(home, nats_users(PASSWORDS)) as nodes:
        yield nodes


def at(node: NatsServer, user: str = "expiration") -> Settings:
    """Settings of somebody who comes to this node first."""
    return Settings(nats_url=with_login(node.url, user, PASSWORDS[user]))


@pytest.fixture
async def cluster(nodes: dict[str, NatsServer]) -> AsyncIterator[Platform]:
    """Connected as the service whose stream it is to the cluster, which has the streams with three replicas."""
    async with connect(at(nodes["n0"], MIGRATE), "test") as platform:
        await migrate_cluster(platform.client)
    async with connect(at(nodes["n0"]), "test") as platform:
        yield platform


async def leader(platform: Platform) -> str:
    """The name of the node that leads the stream."""
    cluster = (await platform.client.jetstream().stream_info(STREAM)).cluster
    assert cluster is not None
    assert cluster.leader is not None
    return cluster.leader


async def test_a_killed_leader_takes_no_acknowledged_event_along(
    nodes: dict[str, NatsServer], cluster: Platform
) -> None:
    load = Load()
    async with AsyncExitStack() as stack:
        platforms = [await stack.enter_async_context(connect(at(node), f"at {name}")) for name, node in nodes.items()]
        logs = [JetStreamLog(each.client, timeout=timeout) for each in platforms for timeout in (30, 0.1)]
        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(load.write(log)) for log in logs]
            follower = group.create_task(follow_until_told(cluster.event_log))
            await load.more(150)
            name = await leader(cluster)
            os.kill(nodes[name].pid, signal.SIGKILL)
            await asyncio.to_thread(nodes[name].kill)
            await load.more(150, within=60)  # two nodes go on without it
            await nodes[name].start()
            await load.more(150)
            load.stopped = True
            await asyncio.wait(writers)
            patient = JetStreamLog(cluster.client, timeout=30)
            await patient.append("expiration.f1", [draft(1)], expected=0)  # the last: it tells the follower
    stored = await whole(cluster.event_log)
    load.check(stored[:-1])
    assert follower.result() == [(recorded.sequence, recorded.id) for recorded in stored]


@pytest.mark.parametrize("leader_stays", [True, False])
async def test_appends_wait_for_a_quorum_as_long_as_they_may(
    nodes: dict[str, NatsServer], cluster: Platform, leader_stays: bool
) -> None:
    patient, impatient = JetStreamLog(cluster.client, timeout=60), JetStreamLog(cluster.client, timeout=1)
    assert await patient.append(A, [draft(1)], expected=0) == 1
    last = await leader(cluster)
    if not leader_stays:
        last = next(name for name in nodes if name != last)
    gone = [name for name in nodes if name != last]
    await asyncio.gather(*(asyncio.to_thread(nodes[name].kill) for name in gone))
    async with asyncio.TaskGroup() as group:
        one = group.create_task(patient.append(A, [draft(2)], expected=1))
        several = group.create_task(patient.append("expiration.c", drafts([3, 4]), expected=0))
        for number in (10, 11):  # the second begins when the patient ones have tried again
            with pytest.raises(Unavailable):
                await impatient.append(f"expiration.{number}", [draft(number)], expected=0)
        assert not one.done()
        assert not several.done()
        await nodes[gone[0]].start()
    stored = await whole(cluster.event_log)
    on_a = [recorded.sequence for recorded in stored if recorded.subject == A]
    assert on_a == [1, one.result()]
    on_c = [recorded for recorded in stored if recorded.subject == "expiration.c"]
    assert (numbers(on_c), on_c[-1].sequence) == ([3, 4], several.result())


async def test_followers_have_what_the_leader_had(nodes: dict[str, NatsServer], cluster: Platform) -> None:
    await cluster.event_log.append(A, drafts(range(50)), expected=0)
    name = await leader(cluster)
    await asyncio.to_thread(nodes[name].kill)
    for node in nodes.values():
        if node.running:
            async with connect(at(node), "reader") as reader:
                log = JetStreamLog(reader.client, timeout=30)

                async def readable(log: JetStreamLog = log) -> list[int]:
                    return numbers(await log.read(A))

                await eventually(readable, list(range(50)))
                async with asyncio.timeout(30):
                    assert numbers(await first(log.follow(STREAM), 50)) == list(range(50))


async def test_a_backup_comes_back_to_three_nodes_with_its_consumers(
    nodes: dict[str, NatsServer], cluster: Platform, database_url: str, home: Path
) -> None:
    settings = msgspec.structs.replace(at(nodes["n1"], MIGRATE), database_url=database_url, replicas=3)
    for number in range(20):
        await cluster.event_log.append(f"expiration.{number}", [draft(number)], expected=0)
    before = await whole(cluster.event_log)
    async with connect(settings, "operator") as operator:
        places = await snapshots.places(operator.client)
        manifest = await back_up(settings, home / "backup", lambda *_: None)
        await cluster.event_log.append("expiration.later", [draft(20)], expected=0)
        await restore_log(settings, home / "backup", manifest, lambda *_: None, lambda _: None, settle=0)
        assert await whole(cluster.event_log) == before
        assert await snapshots.places(operator.client) == places
        assert await lost_by(settings, manifest) == {}
        assert [trouble async for _, trouble in topology.inspect(operator.client, replicas=3) if trouble] == []
        assert await cluster.event_log.append("expiration.next", [draft(21)], expected=0) == 21


async def test_a_stream_that_came_back_is_the_same_whoever_leads_it(
    nodes: dict[str, NatsServer], cluster: Platform
) -> None:
    await cluster.event_log.append(A, drafts(range(50)), expected=0)
    async with connect(at(nodes["n0"], MIGRATE), "operator") as operator:
        chunks: list[bytes] = []
        kept = await snapshots.save(operator.client, STREAM, chunks.append)
        first_of_all = await cluster.event_log.end(STREAM)
        await snapshots.delete(operator.client, STREAM)
        await snapshots.load(operator.client, kept, chunks, replicas=3)
        assert await snapshots.held_alone(operator.client, [STREAM]) == []
        came_back = await cluster.event_log.end(STREAM)
        assert came_back.created > first_of_all.created
        stream = next(each for each in topology.STREAMS if each.name == STREAM)
        await stream.apply(operator.client.jetstream(), 3, new=False)  # as a later `migrate` does
        await asyncio.to_thread(nodes[await leader(cluster)].kill)  # the one that took it in

        async def created() -> datetime:
            with suppress(Unavailable):
                return (await cluster.event_log.end(STREAM)).created
            return FIRST

        await eventually(created, came_back.created, within=60)
        assert numbers(await whole(cluster.event_log)) == list(range(50))
