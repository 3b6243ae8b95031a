"""A stream as bytes and back, with its consumers: JetStream's own snapshots, and what goes with them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from common.clock import now
from common.errors import Unavailable
from common.group_commit import ApiError
from common.topology import ANSWER_SECONDS, CONSUMERS, RESTORED, RESTORED_AT, RESTORING, patiently

CHUNK = 64 * 1024
"""Bytes of a snapshot in one message: some 1,000 events. With `sync_interval: always` nats-server 2.15 restores 1,500
to 5,000 a second, as it takes new ones in; of a piece that takes it 5 s it says that the restore has stalled."""

SILENCE_SECONDS = 30.0
"""After so long without a word from the server a snapshot has failed."""

CALM_SECONDS = 7.0
"""So long every node has to be called current until it is believed: those that follow a restored stream are called so
at once, and begin to take what is in it after 5 s (nats-server 2.15.1; measured: 4.99 s)."""


class State(msgspec.Struct, frozen=True):
    """What is in a stream: how many messages, their bytes, and the sequences of the first and the last."""

    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """A stream at one moment: its settings on the server, and what was in it."""

    config: dict[str, Any]
    state: State


class Place(msgspec.Struct, frozen=True):
    """How far a durable consumer has come: all up to `floor` is settled, and of what was delivered `pending` is not."""

    floor: int
    deliveries: int
    pending: int


class _Answer(msgspec.Struct):
    error: ApiError | None = None
    config: dict[str, Any] = {}
    state: State = State()
    deliver_subject: str = ""


async def save(client: Client, stream: str, write: Callable[[bytes], object]) -> Snapshot:
    """Write a stream and its consumers as they are at one moment, while others go on writing to it.

    `write` takes one piece after the other. Raises Unavailable; what was written is then not all of it.
    """
    connection = client.stats["reconnects"]
    chunks: asyncio.Queue[Msg] = asyncio.Queue()
    async with _told_as_unavailable(f"The snapshot of stream {stream} failed"):
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=chunks.put, pending_msgs_limit=0, pending_bytes_limit=0)
        try:
            wanted = {"deliver_subject": inbox, "no_consumers": False, "chunk_size": CHUNK}
            there = await _ask(client, f"$JS.API.STREAM.SNAPSHOT.{stream}", wanted)
            number = 0
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    message = await chunks.get()
                if not message.data:
                    break
                number += 1
                if message.reply:  # the last has none; elsewhere its end says how many came before it
                    if message.reply.rpartition(".")[2] != str(number):
                        raise nats.errors.Error("a part of it was lost on the way")
                    await client.publish(message.reply)
                write(message.data)
            status = (message.headers or {}).get("Status", "204")
            if status != "204" or client.stats["reconnects"] != connection:
                raise nats.errors.Error(f"it was cut short ({status})")
        finally:
            if not client.is_closed:
                with suppress(nats.errors.Error, OSError):
                    await subscription.unsubscribe()
    return Snapshot(there.config, there.state)


async def load(client: Client, snapshot: Snapshot, chunks: Iterable[bytes], *, replicas: int = 1) -> None:
    """Bring a stream and its consumers back as they were. There must be none of its name.

    It was created anew for all who look. In a cluster its leader alone holds it at first (`held_alone`). Raises
    Unavailable; it is then to be done again.
    """
    stream = snapshot.config["name"]
    async with _told_as_unavailable(f"Stream {stream} could not be restored"):
        metadata = (snapshot.config.get("metadata") or {}) | {RESTORED_AT: now().isoformat()}
        config = snapshot.config | {"num_replicas": replicas, "metadata": metadata}
        wanted = {"config": config, "state": snapshot.state}
        begun = await _ask(client, f"$JS.API.STREAM.RESTORE.{stream}", wanted)
        for chunk in chunks:
            taken = await _hand_over(client, begun.deliver_subject, chunk)
            if taken.data:
                raise nats.errors.Error(taken.data.decode(errors="replace"))
        there = await _ask(client, begun.deliver_subject, None, within=SILENCE_SECONDS * 10)
        wanted_state, ages = snapshot.state, snapshot.config.get("max_age", 0) > 0  # what is too old goes at once
        same_end = there.state.last_seq == wanted_state.last_seq
        if not (same_end and (ages or there.state.messages == wanted_state.messages)):
            raise nats.errors.Error(f"it holds {there.state}, not {wanted_state}")


async def held_alone(client: Client, streams: Sequence[str]) -> list[str]:
    """Wait for the other nodes of a cluster to take streams that were restored; those that one of them still lacks.

    They are waited for as long as they come nearer; a node that is away is not. Raises Unavailable.
    """
    js, clock = client.jetstream(timeout=ANSWER_SECONDS), asyncio.get_running_loop().time
    moved, before = clock(), dict[str, list[int]]()
    async with _told_as_unavailable("The nodes do not tell whether they hold what was restored"):
        while True:
            lags = {stream: await _lags(js, stream) for stream in streams}
            if lags != before:
                moved, before = clock(), lags
            behind = [stream for stream, each in lags.items() if any(each)]
            if not any(lags.values()) or clock() - moved >= (SILENCE_SECONDS if behind else CALM_SECONDS):
                return behind
            await asyncio.sleep(0.2)


async def _lags(js: JetStreamContext, stream: str) -> list[int]:
    """How many messages each node that follows lacks: 1 at least, if it is not current. Raises what nats-py raises."""
    there = (await patiently(partial(js.stream_info, stream))).cluster
    followers = (there and there.replicas) or []
    return [0 if node.current else max(1, node.lag or 0) for node in followers if not node.offline]


@asynccontextmanager
async def restoring(client: Client, command: str) -> AsyncIterator[None]:
    """While the log is brought back by a command. If that is cut off, `NotWhole` tells of it until it is done.

    Nobody appends meanwhile: whoever is told (`tell_restored`) looks whether this is over. Raises Unavailable.
    """
    js = client.jetstream(timeout=10)
    async with _told_as_unavailable("It could not be noted that the log is being brought back"):
        noted = RESTORING.evolve(description=command)
        try:
            await js.update_stream(noted)  # one that was cut off has left it
        except NotFoundError:
            await js.add_stream(noted)
    yield
    await restored(client)


async def restored(client: Client) -> None:
    """The log is whole: everybody may append again. Raises Unavailable."""
    await delete(client, str(RESTORING.name))


async def delete(client: Client, stream: str) -> None:
    """Delete a stream with all that is in it, if there is one. Raises Unavailable."""
    async with _told_as_unavailable(f"Stream {stream} could not be deleted"):
        with suppress(NotFoundError):
            await client.jetstream(timeout=10).delete_stream(stream)


async def state(client: Client, stream: str) -> State | None:
    """What is in a stream; None if there is none. Raises Unavailable."""
    async with _told_as_unavailable(f"Stream {stream} does not say what is in it"):
        try:
            there = await patiently(lambda: client.jetstream(timeout=ANSWER_SECONDS).stream_info(stream))
        except NotFoundError:
            return None
    return State(there.state.messages, there.state.bytes, there.state.first_seq, there.state.last_seq)


async def places(client: Client) -> Mapping[str, Place]:
    """How far each durable consumer of the topology has come, by its name; those that are missing are left out.

    Raises Unavailable.
    """
    found: dict[str, Place] = {}
    js = client.jetstream(timeout=ANSWER_SECONDS)
    async with _told_as_unavailable("JetStream does not tell of its consumers"):
        for consumer in CONSUMERS:
            with suppress(NotFoundError):
                info = await patiently(partial(js.consumer_info, consumer.stream, consumer.durable))
                assert info.ack_floor, "the server says so"
                assert info.delivered, "the server says so"
                found[consumer.durable] = Place(
                    info.ack_floor.stream_seq, info.delivered.consumer_seq, info.num_ack_pending or 0
                )
    return found


async def redeliver(client: Client, stream: str, durable: str, after: int) -> None:
    """Have a consumer hear again all that comes after a sequence. Raises Unavailable."""
    async with _told_as_unavailable(f"Consumer {durable} could not be set back to {after}"):
        await _ask(client, f"$JS.API.CONSUMER.RESET.{stream}.{durable}", {"seq": after + 1})


async def tell_restored(client: Client) -> None:
    """Tell every process that the log is another from now on. Raises Unavailable."""
    async with _told_as_unavailable("Nobody could be told that the log is restored"):
        await client.publish(RESTORED)
        await client.flush()


async def _hand_over(client: Client, subject: str, chunk: bytes) -> Msg:
    """What is said to a piece, which nobody may take yet. Raises what nats-py raises.

    In a cluster the answer that names the subject may be here before our node knows who listens to it: the two come
    by connections of their own.
    """
    deadline = asyncio.get_running_loop().time() + SILENCE_SECONDS
    while True:
        try:
            return await client.request(subject, chunk, timeout=SILENCE_SECONDS)
        except nats.errors.NoRespondersError:
            if asyncio.get_running_loop().time() >= deadline:
                raise
        await asyncio.sleep(0.05)


async def _ask(client: Client, subject: str, question: object, *, within: float = 10) -> _Answer:
    """The answer of JetStream. Raises what nats-py raises."""
    body = b"" if question is None else msgspec.json.encode(question)
    answer = msgspec.json.decode((await client.request(subject, body, timeout=within)).data, type=_Answer)
    if answer.error:
        raise nats.errors.Error(f"{answer.error.description} ({answer.error.err_code})")
    return answer


@asynccontextmanager
async def _told_as_unavailable(what: str) -> AsyncIterator[None]:
    try:
        yield
    except (TimeoutError, nats.errors.Error, OSError) as error:
        raise Unavailable(f"{what}: {str(error) or 'no answer'}.") from error
