"""What `boxoffice migrate` makes of a NATS server, and that it can be repeated and mends what is wrong."""

import pytest
from nats.js.api import StreamConfig
from nats.js.errors import APIError

from common import topology
from common.errors import Unavailable
from common.events import OWNERS
from common.runtime import Platform, connect
from common.settings import Settings
from common.topology import BELIEVED_SECONDS, CONSUMERS, STREAMS
from services.cli.servers import NatsServer
from tests.facts import connected, draft, numbers, tell, whole
from tests.harness import Fate, Proxy, eventually


def test_every_service_with_events_has_a_stream_and_every_consumer_is_on_one() -> None:
    names = {stream.name for stream in STREAMS}
    assert {owner.upper() for owner in OWNERS} == names - {"DEAD"}
    assert {consumer.stream for consumer in CONSUMERS} <= names
    assert len({consumer.durable for consumer in CONSUMERS}) == len(CONSUMERS)
    for consumer in CONSUMERS:
        assert consumer.durable.startswith(f"{consumer.service}-")


async def test_the_first_time_everything_is_created_and_then_nothing(nats: NatsServer) -> None:
    async with connect(Settings(nats_url=nats.url), "test") as platform:
        told: list[str] = []
        await topology.migrate(platform.client, report=told.append)
        assert len(told) == len(STREAMS) + len(CONSUMERS)
        assert all(change.startswith("created ") for change in told)
        assert all(any(stream.name in change for change in told) for stream in STREAMS)
        assert all(any(consumer.durable in change for change in told) for consumer in CONSUMERS)
        told.clear()
        await topology.migrate(platform.client, report=told.append)
        assert told == []


async def test_history_cannot_be_dropped(streams: Platform) -> None:
    js = streams.client.jetstream()
    await tell(streams.event_log, 1, 2)
    with pytest.raises(APIError, match="purge"):
        await js.purge_stream("EXPIRATION")
    with pytest.raises(APIError, match="delete"):
        await js.delete_msg("EXPIRATION", 1)
    for stream in STREAMS:
        config = (await js.stream_info(stream.name)).config
        forgets = stream.name in ("REVOKED", "SPENT")  # what holds only for as long as a token lives
        assert (config.max_age or 0, config.max_msgs, config.max_bytes) == (BELIEVED_SECONDS if forgets else 0, -1, -1)
        assert (str(config.storage), str(config.retention), str(config.discard)) == ("file", "limits", "new")
    assert numbers(await whole(streams.event_log)) == [1, 2]


async def test_a_stream_that_would_forget_is_mended(streams: Platform) -> None:
    js = streams.client.jetstream()
    config = (await js.stream_info("EXPIRATION")).config
    config.max_age = 3600
    await js.update_stream(config)
    told: list[str] = []
    await topology.migrate(streams.client, report=told.append)
    assert told == ["changed stream EXPIRATION: max_age is 3600.0, not 0"]
    assert not (await js.stream_info("EXPIRATION")).config.max_age


async def test_a_consumer_that_was_deleted_comes_back(streams: Platform) -> None:
    js = streams.client.jetstream()
    await js.delete_consumer("EXPIRATION", "orders-cancel-expired")
    told: list[str] = []
    await topology.migrate(streams.client, report=told.append)
    assert len(told) == 1
    assert "orders-cancel-expired" in told[0]
    assert (await js.consumer_info("EXPIRATION", "orders-cancel-expired")).num_pending == 0


async def test_settings_that_differ_are_mended_and_nothing_is_lost(streams: Platform) -> None:
    js = streams.client.jetstream()
    await tell(streams.event_log, 1, 2)
    [consumer] = [each for each in CONSUMERS if each.durable == "orders-cancel-expired"]
    different = consumer.config()
    different.ack_wait, different.max_ack_pending = 5, 7
    await js.add_consumer(consumer.stream, different)
    [stream] = [each for each in STREAMS if each.name == "EXPIRATION"]
    wider = stream.config(1)
    wider.subjects = ["expiration.*", "elsewhere.*"]
    await js.update_stream(wider)
    told: list[str] = []
    await topology.migrate(streams.client, report=told.append)
    assert len(told) == 2
    mended = (await js.consumer_info(consumer.stream, consumer.durable)).config
    assert (mended.ack_wait, mended.max_ack_pending) == (consumer.ack_wait, consumer.max_ack_pending)
    assert (await js.stream_info("EXPIRATION")).config.subjects == ["expiration.*"]
    assert numbers(await whole(streams.event_log)) == [1, 2]


async def test_a_stream_that_took_our_subject_is_told(nats: NatsServer) -> None:
    async with connect(Settings(nats_url=nats.url), "test") as platform:
        await platform.client.jetstream().add_stream(StreamConfig(name="OTHERS", subjects=["orders.>"]))
        with pytest.raises(Unavailable, match="overlap"):
            await topology.migrate(platform.client)


async def test_more_replicas_than_there_are_servers_is_told(nats: NatsServer) -> None:
    async with connect(Settings(nats_url=nats.url), "test") as platform:
        with pytest.raises(Unavailable, match="replicas"):
            await topology.migrate(platform.client, replicas=3)


async def test_a_server_that_is_away_is_unavailable(streams: Platform, nats: NatsServer) -> None:
    nats.kill()
    await eventually(connected(streams), False)
    with pytest.raises(Unavailable):
        await topology.migrate(streams.client)


@pytest.mark.usefixtures("streams")
async def test_a_question_that_nobody_answers_is_asked_again(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "ANSWER_SECONDS", 0.3)
    asked: list[bytes] = []

    def lost_at_first(frame: bytes) -> Fate:
        """As while a cluster elects its leader."""
        asked.append(subject := frame.split()[1])
        return (
            "drop"
            if subject.endswith((b".RESTORING", b".expiration-hold-orders")) and subject not in asked[:-1]
            else "pass"
        )

    async with Proxy(nats) as proxy, connect(Settings(nats_url=proxy.url), "test") as platform:
        proxy.requests = lost_at_first
        await topology.require_whole(platform.client)
        assert [trouble async for _, trouble in topology.inspect(platform.client) if trouble] == []
        assert asked.count(b"$JS.API.STREAM.INFO.RESTORING") == 2
        assert asked.count(b"$JS.API.CONSUMER.INFO.ORDERS.expiration-hold-orders") == 2
        proxy.requests = lambda _: "drop"
        with pytest.raises(Unavailable, match="timeout"):
            await topology.require_whole(platform.client, within=0.5)


async def test_events_go_to_the_stream_of_their_first_token(streams: Platform) -> None:
    for stream in STREAMS:
        if stream.name != "DEAD":
            assert await streams.event_log.append(f"{stream.name.lower()}.x", [draft(1)], expected=0) == 1
            assert (await streams.event_log.end(stream.name)).sequence == 1
    with pytest.raises(Unavailable):
        await streams.event_log.end("UNKNOWN")
