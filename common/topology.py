"""The streams and durable consumers that exist, with their settings; created by `boxoffice migrate` and nobody else."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import NotFoundError, ServiceUnavailableError

from common.errors import Unavailable

T = TypeVar("T")

MISSING = "missing"

INBOXES = "_INBOX"
"""With what the inboxes of every user begin."""

PASSING_SECONDS = 3600.0
"""For so long at most the server keeps a consumer that nobody listens to any more, if it is to be forgotten at all."""

BELIEVED_SECONDS = 1800
"""Longer than anything lives that is believed without asking who issued it: access tokens, tickets, logins begun."""

RESTORED = "log.restored"
"""On what everybody is told, by `boxoffice restore` and `events import`, that the log is another from now on."""

RESTORED_AT = "boxoffice.restored"
"""In the metadata of a stream that was brought back: when, in ISO 8601. It is the time of its creation: what the server
calls so is, of one that was restored to several nodes, another on the node that took it in (seen with 2.15.1)."""

STREAM_SETTINGS = (
    "subjects",
    "retention",
    "discard",
    "storage",
    "max_age",
    "max_bytes",
    "max_msgs",
    "max_msgs_per_subject",
    "num_replicas",
    "allow_atomic",
    "allow_direct",
    "deny_delete",
    "deny_purge",
)
"""Those without which an event could be lost or refused."""


class Stream(msgspec.Struct, frozen=True):
    """A service's log. History is never dropped: no size limit, no delete, no purge.

    `writers` are the services that append to it, and read it; `readers` those that read it beside them. Whoever has a
    durable consumer on it hears it all the same. `max_age`: seconds after which what is not history goes by itself; 0
    keeps it for ever.
    """

    name: str
    subjects: tuple[str, ...]
    writers: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    max_age: float = 0

    def __str__(self) -> str:
        return f"stream {self.name}"

    def config(self, replicas: int) -> StreamConfig:
        """The settings on the server."""
        return StreamConfig(
            name=self.name,
            subjects=list(self.subjects),
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
            storage=StorageType.FILE,
            max_age=self.max_age,
            max_bytes=-1,
            max_msgs=-1,
            max_msgs_per_subject=-1,
            num_replicas=replicas,
            deny_delete=True,
            deny_purge=True,
            allow_direct=True,
            allow_atomic=True,
            duplicate_window=120,
        )

    async def trouble(self, js: JetStreamContext, replicas: int) -> str:
        """In what it differs on the server from what it should be; empty if in nothing that matters."""
        there = (await js.stream_info(self.name)).config
        return _differences(there, self.config(replicas), STREAM_SETTINGS)

    async def apply(self, js: JetStreamContext, replicas: int, *, new: bool) -> None:
        """Create or change it."""
        if new:
            await js.add_stream(self.config(replicas))
        else:
            there = (await js.stream_info(self.name)).config
            await js.update_stream(self.config(replicas), metadata=there.metadata)


class Consumer(msgspec.Struct, frozen=True):
    """A durable consumer: the place in a stream up to which one Listener of one service has heard.

    `ack_wait` is in seconds. `max_ack_pending` counts delivered and unsettled messages, also those put back with a
    delay; -1 is without limit. Giving up is the Listener's decision, so the server never does (`max_deliver` -1).
    `subject`: which part of the stream, if not all of it.
    """

    durable: str
    stream: str
    service: str
    ack_wait: float = 30
    max_ack_pending: int = 1000
    subject: str = ""

    def __str__(self) -> str:
        return f"consumer {self.durable} on {self.stream}"

    def hears(self, stream: str, subject: str) -> bool:
        """Whether what is on a subject of a stream is for it."""
        part = re.escape(self.subject).replace(r"\*", "[^.]+") or ".+"
        return stream == self.stream and re.fullmatch(part, subject) is not None

    def config(self) -> ConsumerConfig:
        """The settings on the server."""
        return ConsumerConfig(
            durable_name=self.durable,
            name=self.durable,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self.ack_wait,
            max_deliver=-1,
            max_ack_pending=self.max_ack_pending,
            filter_subject=self.subject or None,
        )

    async def trouble(self, js: JetStreamContext, _replicas: int) -> str:
        """In what it differs on the server from what it should be; empty if in nothing that matters."""
        there = (await js.consumer_info(self.stream, self.durable)).config
        return _differences(there, self.config(), ("ack_wait", "max_ack_pending", "max_deliver", "filter_subject"))

    async def apply(self, js: JetStreamContext, _replicas: int, *, new: bool) -> None:
        """Create or change it. Where it begins stays as it is, as the server wants."""
        config = self.config()
        if not new:
            there = (await js.consumer_info(self.stream, self.durable)).config
            config.deliver_policy, config.opt_start_seq = there.deliver_policy, there.opt_start_seq
        await js.add_consumer(self.stream, config)

    async def begin_at(self, js: JetStreamContext, sequence: int) -> None:
        """Have it hear nothing before `sequence`, and all from there; made anew unless it does already."""
        there = (await js.consumer_info(self.stream, self.durable)).config
        if (there.opt_start_seq or 1) == sequence:
            return
        config = self.config()
        if sequence > 1:
            config.deliver_policy, config.opt_start_seq = DeliverPolicy.BY_START_SEQUENCE, sequence
        await js.delete_consumer(self.stream, self.durable)
        await js.add_consumer(self.stream, config)


SERVICES = ("batch", "expiration", "history", "identity", "notification", "orders", "tickets", "web")

STREAMS = (
    Stream("TICKETS", ("tickets.*",), ("tickets",), readers=("orders", "notification", "history")),
    Stream("ORDERS", ("orders.*",), ("orders",), readers=("tickets", "expiration", "notification", "history")),
    Stream("EXPIRATION", ("expiration.*",), ("expiration",), readers=("history",)),
    Stream("BATCH", ("batch.>",), ("batch",), readers=("history",)),
    Stream("NOTIFICATIONS", ("notifications.>",), ("notification",), readers=("history",)),
    Stream("IDENTITY", ("identity.>",), ("identity",), readers=("history",)),
    Stream("REPAIRS", ("repairs.*",), ("history",)),
    Stream("REVOKED", ("revoked.*",), ("identity",), readers=SERVICES, max_age=BELIEVED_SECONDS),
    Stream("SPENT", ("spent.*",), ("identity", "notification"), max_age=BELIEVED_SECONDS),
    Stream("DEAD", ("dead.>",), readers=("history",)),  # whose consumer it was writes `dead.<durable>`
)

HISTORY = tuple(stream.name for stream in STREAMS if stream.writers and not stream.max_age)
"""The streams that are kept for ever, and hold events of services: what can be looked at, exported and replayed."""

CONSUMERS = (
    Consumer("orders-keep-book", "TICKETS", "orders"),
    Consumer("orders-cancel-expired", "EXPIRATION", "orders"),
    Consumer("orders-settle-payments", "ORDERS", "orders"),
    # A delayed message stays pending, and a crash of the server falls back to ack_wait: no limit, and soon.
    Consumer("expiration-hold-orders", "ORDERS", "expiration", ack_wait=10, max_ack_pending=-1),
    Consumer("batch-release", "BATCH", "batch", max_ack_pending=-1, subject="batch.*"),
    Consumer("batch-abandon", "BATCH", "batch", max_ack_pending=-1, subject="batch.*"),
    Consumer("batch-count", "BATCH", "batch", subject="batch.*.*"),
    Consumer("batch-work-high", "BATCH", "batch", ack_wait=10, max_ack_pending=-1, subject="batch.high.*"),
    Consumer("batch-work-normal", "BATCH", "batch", ack_wait=10, max_ack_pending=-1, subject="batch.normal.*"),
    Consumer("batch-work-low", "BATCH", "batch", ack_wait=10, max_ack_pending=-1, subject="batch.low.*"),
    Consumer("identity-revoke", "IDENTITY", "identity"),
    Consumer("notification-tell-buyers", "ORDERS", "notification"),
    Consumer("notification-tell-sellers", "ORDERS", "notification"),
    Consumer("notification-tell-submitters", "BATCH", "notification", subject="batch.*"),
    Consumer("notification-webhooks", "NOTIFICATIONS", "notification", subject="notifications.*"),
    Consumer(
        "notification-deliver-webhooks",
        "NOTIFICATIONS",
        "notification",
        ack_wait=10,
        max_ack_pending=-1,
        subject="notifications.deliveries.*",
    ),
)

ANSWERS: Mapping[str, tuple[str, ...]] = {
    "tickets": ("batch",),
    "orders": ("batch",),
    "batch": (),
    "identity": SERVICES,
}
"""The services that answer requests (`requests.<service>.<name>`), and which others may ask each; it may itself."""

LISTENS = tuple(service for service in SERVICES if any(consumer.service == service for consumer in CONSUMERS))
"""The services that have listeners, and answer who wants one to hear an event once more (REDELIVER)."""

REDELIVERS = "history"
"""The service that may ask for that; no other, though it may ask everything else."""

OVERSEES = "history"
"""The service that may ask how every stream, consumer and service is; that says nothing of what is in them."""

REDELIVER = "redeliver"
"""The name of that request."""

CONSUMER: Mapping[str, Consumer] = {consumer.durable: consumer for consumer in CONSUMERS}


class Follower(msgspec.Struct, frozen=True):
    """A worker that reads streams as they grow, in every process of its services; the server keeps no place for it.

    `what`: what it does with that, for people.
    """

    name: str
    services: Sequence[str]
    streams: Sequence[str]
    what: str


FOLLOWERS = (
    Follower("expiration.withdrawals", ("expiration",), ("ORDERS",), "Lets go of orders that ended before their time."),
    Follower("tickets.live", ("tickets",), ("TICKETS", "ORDERS"), "Tells pages that look at a ticket how it is now."),
    Follower("notification.feed", ("notification",), ("NOTIFICATIONS",), "Hands what is raised to who is connected."),
    Follower("history.letters", ("history",), ("REPAIRS",), "Knows which dead letters are open."),
    Follower("credentials", SERVICES, ("REVOKED",), "Lets nobody in any more with what was revoked."),
)
"""All of them but projectors, which read models name."""


class NotWhole(Unavailable):
    """The log is being brought back from files, or that was cut off: nothing may be made of what is there."""


RESTORING = StreamConfig(name="RESTORING", subjects=["restoring"], storage=StorageType.FILE)
"""Is there while the log is brought back from a backup or an export; its description says by which command."""


ANSWER_SECONDS = 2
"""How long one question waits for its answer: who asks while a cluster elects its leader never gets one."""

PATIENCE_SECONDS = 30
"""How long a question is asked again. An election takes some seconds, and so may a disk that others write to."""


async def patiently(ask: Callable[[], Awaitable[T]], within: float = PATIENCE_SECONDS) -> T:
    """The answer to a question that changes nothing, asked again while nobody answers. Raises what it raised last."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        try:
            return await ask()
        except (nats.errors.TimeoutError, ServiceUnavailableError) as error:
            without_jetstream = isinstance(error, ServiceUnavailableError) and error.code is None
            if without_jetstream or asyncio.get_running_loop().time() >= deadline:
                raise
        await asyncio.sleep(0.1)


async def require_whole(client: Client, *, within: float = PATIENCE_SECONDS, but_for: str = "") -> None:
    """Raises NotWhole while the log is brought back from files, also when that was cut off; Unavailable.

    `but_for`: with what the command begins that may go on with it.
    """
    js = client.jetstream(timeout=min(within, ANSWER_SECONDS))
    async with _told_as_unavailable():
        with suppress(NotFoundError):
            there = await patiently(lambda: js.stream_info(str(RESTORING.name)), within)
            command = there.config.description or ""
            if not (but_for and command.startswith(but_for)):
                again = f"run `{command}` again, if it does not run any more"
                raise NotWhole(f"The log is not brought back to its end: {again}.")


async def inspect(client: Client, *, replicas: int = 1) -> AsyncIterator[tuple[Stream | Consumer, str]]:
    """Every stream and consumer with what is wrong with it (empty: nothing). Raises Unavailable."""
    js = client.jetstream(timeout=ANSWER_SECONDS)
    async with _told_as_unavailable():
        for thing in (*STREAMS, *CONSUMERS):
            try:
                trouble = await patiently(partial(thing.trouble, js, replicas))
            except NotFoundError:
                trouble = MISSING
            yield thing, trouble


async def begin_behind(client: Client, ends: Mapping[str, int]) -> None:
    """Have every durable consumer begin behind these sequences, by stream; at the first event where none is named.

    Whoever listens meanwhile is not heard for a moment, and goes on by itself. Raises Unavailable.
    """
    js = client.jetstream(timeout=10)
    async with _told_as_unavailable():
        for consumer in CONSUMERS:
            await consumer.begin_at(js, ends.get(consumer.stream, 0) + 1)


class Stray(msgspec.Struct, frozen=True):
    """A consumer that stays, and that nobody has asked for here. `why`: what makes it stay, or where it delivers."""

    stream: str
    name: str
    why: str

    def __str__(self) -> str:
        return f"consumer {self.name} on {self.stream}"


async def strays(client: Client) -> AsyncIterator[Stray]:
    """Consumers that are not in CONSUMERS and do not pass by themselves, or deliver elsewhere than into an inbox.

    Whoever may read a stream may make them: the server looks at the name of a consumer, not at what it is asked to be.
    Raises Unavailable.
    """
    js = client.jetstream(timeout=10)
    known = {(consumer.stream, consumer.durable) for consumer in CONSUMERS}
    async with _told_as_unavailable():
        for stream in STREAMS:
            seen = 0
            with suppress(NotFoundError):  # a stream that is missing has none; `inspect` tells of it
                while page := await js.consumers_info(stream.name, offset=seen):
                    seen += len(page)
                    for info in page:
                        if (stream.name, info.name) not in known and (why := _why_it_is_none_of_ours(info.config)):
                            yield Stray(stream.name, info.name, why)


def _why_it_is_none_of_ours(config: ConsumerConfig) -> str:
    if config.deliver_subject and not config.deliver_subject.startswith(INBOXES):
        return f"it delivers to {config.deliver_subject}"
    if config.durable_name:
        return "it is durable"
    if (config.inactive_threshold or 0) > PASSING_SECONDS:
        return f"it stays for {config.inactive_threshold:,.0f} s after nobody listens"
    return ""


async def migrate(client: Client, *, replicas: int = 1, report: Callable[[str], None] = lambda _: None) -> None:
    """Make the server's streams and consumers what this page says; safe to repeat. Raises Unavailable.

    `report` is told each thing created or changed.
    """
    js = client.jetstream(timeout=10)
    async for thing, trouble in inspect(client, replicas=replicas):
        if trouble:
            async with _told_as_unavailable():
                await thing.apply(js, replicas, new=trouble == MISSING)
            report(f"created {thing}" if trouble == MISSING else f"changed {thing}: {trouble}")


@asynccontextmanager
async def _told_as_unavailable() -> AsyncIterator[None]:
    try:
        yield
    except ServiceUnavailableError as error:
        if error.code is None:  # nobody is there who could answer
            raise Unavailable("NATS runs without JetStream: start it with `-js`.") from error
        raise Unavailable(f"JetStream is not available: {error.description}.") from error
    except (nats.errors.Error, OSError) as error:
        raise Unavailable(f"JetStream does not answer as it should: {error}") from error


def _differences(there: object, wanted: object, names: Sequence[str]) -> str:
    pairs = [(name, getattr(there, name), getattr(wanted, name)) for name in names]
    differing = [pair for pair in pairs if pair[1] != pair[2] and (pair[1] or pair[2])]  # the server may leave out a 0
    return ", ".join(f"{name} is {is_now}, not {should}" for name, is_now, should in differing)
