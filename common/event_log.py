"""Append, read and follow events on JetStream: subjects, headers, expected sequence, atomic batch."""

import asyncio
import heapq
import random
from collections import deque
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Protocol, Self

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from common.clock import new_id_text, now
from common.errors import Invalid, Unavailable
from common.events import Event, Skipped, UndecodableEvent, decode, encode, type_of
from common.group_commit import BATCH_LIMIT, ApiError, GroupCommit, Guarded, PubAck
from common.telemetry import APPENDED, IN_DOUBT, Cause, current_cause
from common.topology import RESTORED_AT, NotWhole, require_whole
from common.tracing import LINKS, span, tracer

WRONG_LAST_SEQUENCE = 10071
WRITE_IN_FLIGHT = 10164
DUPLICATE_IN_BATCH = 10201
BATCH_INCOMPLETE = 10176
DUPLICATE_IN_PROCESS = 10158
# Retried as they are: another guarded write has not settled yet, the batch was cut short by a reconnect, or our own
# first try waits for a quorum.
PASSING = {WRITE_IN_FLIGHT, BATCH_INCOMPLETE, DUPLICATE_IN_PROCESS}


class WrongSequence(Exception):
    """The guard held: somebody else appended to this subject first. Reload and decide again."""


class Draft(msgspec.Struct, frozen=True):
    """An event on its way to the log. Its id is made once, so that the log recognises a second try."""

    event: Event
    id: str
    cause: Cause

    @classmethod
    def of(cls, event: Event, cause: Cause | None = None) -> Self:
        """`event` with a new id, caused by `cause` or by what this task is doing."""
        return cls(event, new_id_text(), cause or current_cause())

    def headers(self, source: str) -> dict[str, str]:
        """The envelope: CloudEvents attributes (with its `sequence` extension), ids of cause and conversation."""
        headers = {
            "Nats-Msg-Id": self.id,
            "ce-specversion": "1.0",
            "ce-id": self.id,
            "ce-type": type_of(type(self.event)),
            "ce-source": source,
            "ce-time": now().isoformat(),
            "ce-sequence": str(self.event.version),
            "correlation-id": self.cause.correlation_id,
            "causation-id": self.cause.causation_id,
        }
        if self.cause.traceparent:
            headers["traceparent"] = self.cause.traceparent
        return headers


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """An event in the log, with its envelope. `sequence` is its place in the stream."""

    subject: str
    sequence: int
    event: Event
    headers: dict[str, str]

    @property
    def id(self) -> str:
        return self.headers["ce-id"]

    @property
    def cause(self) -> Cause:
        """What led to this event."""
        return Cause(self.headers["correlation-id"], self.headers["causation-id"], self.headers.get("traceparent"))

    @property
    def time(self) -> datetime:
        """When it was appended, by the clock of who appended it."""
        return datetime.fromisoformat(self.headers["ce-time"])


Batches = AsyncGenerator[list[Recorded], None]


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A message of a stream as it is kept, not decoded: also one that this code does not understand.

    `stored_at`: when the server took it, in UTC; an import or a dead letter has another `ce-time`.
    """

    stream: str
    subject: str
    sequence: int
    headers: dict[str, str]
    body: bytes
    stored_at: datetime

    @property
    def time(self) -> datetime:
        """When it was appended, by the clock of who appended it; when it was stored, where nobody tells a time."""
        try:
            told = datetime.fromisoformat(self.headers.get("ce-time", ""))
        except ValueError:
            return self.stored_at
        return told if told.tzinfo else self.stored_at

    @property
    def type(self) -> str:
        """The type tag of its event; empty for what is none."""
        return self.headers.get("ce-type", "")

    def decoded(self) -> Recorded:
        """The event that it is. Raises UndecodableEvent."""
        return recorded(self.subject, self.sequence, self.headers, self.body)


StoredBatches = AsyncGenerator[list[Stored], None]

SKIPPED = Skipped()
MIGRATED = " Has `boxoffice migrate` run?"
"""What is asked where a stream is missing."""


class StreamEnd(msgspec.Struct, frozen=True):
    """Which stream this is (a new one has a new `created`) and how far it goes."""

    created: datetime
    sequence: int

    @property
    def log(self) -> str:
        """Which stream this is, short: the millisecond of its creation, in base 16."""
        return f"{int(self.created.timestamp() * 1000):x}"


class EventLog(Protocol):
    """What services know of the log. Two make it: `JetStreamLog` and, for unit tests, `MemoryLog`."""

    @property
    def renewals(self) -> int:
        """How often the connection to it was renewed, or it was: it may be another log then, restored or made anew."""

    async def append(self, subject: str, drafts: Sequence[Draft], *, expected: int) -> int:
        """Append all of `drafts` (1 to 1,000) or none, if `expected` is the last sequence on `subject` (0: none yet).

        Returns the stream sequence of the last one. The same drafts twice are stored once and answer the same.
        Raises WrongSequence, or Unavailable when the outcome could not be learned in time.
        """

    async def read(self, subject: str, after: int = 0) -> list[Recorded]:
        """The events on one literal subject whose stream sequence is greater than `after`."""

    def follow(
        self, stream: str, after: int = 0, *, limit: int = BATCH_LIMIT, skips: Collection[type[Event]] = ()
    ) -> Batches:
        """All events of a stream past sequence `after`, in order and for ever, in lists of 1 to `limit`.

        Those of a type that is in `skips` are not decoded: `SKIPPED` stands in their place.

        Close it with `contextlib.aclosing`. Raises UndecodableEvent, after what comes before it: nothing is skipped.
        Raises Unavailable when the connection is closed, or when the stream is no longer the one that was read.
        """

    async def end(self, stream: str) -> StreamEnd:
        """Where the stream ends now."""

    async def event_id(self, stream: str, sequence: int) -> str | None:
        """The id of the event at `sequence`, or None where there is none."""


class _StreamState(msgspec.Struct, frozen=True):
    last_seq: int = 0


class _StreamConfig(msgspec.Struct, frozen=True):
    metadata: dict[str, str] = {}


class _StreamInfo(msgspec.Struct):
    created: datetime = datetime.fromtimestamp(0, UTC)
    config: _StreamConfig = _StreamConfig()
    state: _StreamState = _StreamState()
    error: ApiError | None = None


LOOK_SECONDS = 0.5
"""How long `watch` lets things come together: soon enough for a person."""

ADDED = {
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
}
"""Headers that a direct get answers with besides those of the message (ADR-31)."""


def stream_of(subject: str) -> str:
    """The stream that a subject belongs to: its first token, in capitals."""
    return subject.partition(".")[0].upper()


async def merged(scans: Mapping[str, StoredBatches]) -> AsyncGenerator[Stored, None]:
    """All that these streams hold, each in its own order, and all together in the order of time as far as that allows.

    A page of each is in memory at a time.
    """
    async with AsyncExitStack() as stack:
        heads: list[tuple[datetime, str, Iterator[Stored], Stored]] = []

        async def advance(stream: str, page: Iterator[Stored]) -> None:
            stored = next(page, None)
            if stored is None and (more := await anext(scans[stream], None)):
                page = iter(more)
                stored = next(page)
            if stored is not None:
                heapq.heappush(heads, (stored.time, stream, page, stored))

        for stream, scan in scans.items():
            await stack.enter_async_context(aclosing(scan))
            await advance(stream, iter(()))
        while heads:
            _, stream, page, stored = heapq.heappop(heads)
            yield stored
            await advance(stream, page)


def delivery(reply: str) -> tuple[int, int, int]:
    """Which delivery a message's reply subject says it is, and its stream and consumer sequence (ADR-15)."""
    delivered, sequence, consumed = _numbers(reply)[:3]
    return int(delivered), int(sequence), int(consumed)


def _numbers(reply: str) -> list[str]:
    """The numbers of a reply subject: those of `delivery`, and the nanosecond in which the message was stored."""
    tokens = reply.split(".")
    at = 4 if len(tokens) == 9 else 6  # 11 tokens and more name the domain and the account as well
    return tokens[at : at + 4]


def stored_ns(reply: str) -> int:
    """When the server stored a message, in nanoseconds of Unix time, as its reply subject says (ADR-15)."""
    return int(_numbers(reply)[3])


RESTORATIONS = "restorations"


def restorations(client: Client) -> int:
    """How often this client was told that the log is being restored: from then on it is another."""
    return client.stats.get(RESTORATIONS, 0)


def renewals(client: Client) -> int:
    """How often it may have become another log for this client, which did not hear while it was not connected."""
    return client.stats["reconnects"] + restorations(client)


class JetStreamLog:
    """The event log on NATS JetStream. Streams must exist (`boxoffice migrate`)."""

    def __init__(self, client: Client, *, timeout: float = 5.0) -> None:
        """`timeout`: seconds in which an append or a read finds its outcome, or raises Unavailable."""
        self._client = client
        self._js: JetStreamContext = client.jetstream(timeout=timeout)
        self._timeout = timeout
        self._groups: dict[str, GroupCommit] = {}  # by stream
        self._whole = -1  # at which renewal the log was seen to be whole

    @property
    def renewals(self) -> int:
        return renewals(self._client)

    async def append(self, subject: str, drafts: Sequence[Draft], *, expected: int) -> int:
        if not 1 <= len(drafts) <= BATCH_LIMIT:
            raise Invalid(f"One decision may make 1 to {BATCH_LIMIT} events, this one made {len(drafts)}.")
        if tracer.get() is None:
            return await self._append(subject, drafts, expected)
        first, stream = drafts[0].cause.traceparent, stream_of(subject)
        others = {draft.cause.traceparent for draft in drafts[1:]} - {first, None}
        with span(
            f"append {stream}",
            "producer",
            {
                "messaging.system": "nats",
                "messaging.destination.name": stream,
                "messaging.message.id": drafts[0].id,
                "messaging.batch.message_count": len(drafts),
                "boxoffice.event": type_of(type(drafts[0].event)),
            },
            traceparent=first,
            links=islice(filter(None, others), LINKS),
        ) as appending:
            try:
                sequence = await self._append(subject, drafts, expected)
            except WrongSequence:
                appending.tell("boxoffice.outcome", "conflict")
                raise
            appending.tell("boxoffice.sequence", sequence)
            return sequence

    async def _append(self, subject: str, drafts: Sequence[Draft], expected: int) -> int:
        stream = stream_of(subject)
        deadline = asyncio.get_running_loop().time() + self._timeout
        in_doubt, hint = False, ""  # may an earlier try of ours have been stored?
        await self._require_whole(deadline)
        while True:
            try:
                ack = await self._publish(subject, drafts, expected)
            except (nats.errors.TimeoutError, nats.errors.ConnectionReconnectingError):
                in_doubt = True
                IN_DOUBT.labels(stream).inc()
                ack = None
            except (nats.errors.NoRespondersError, nats.errors.OutboundBufferLimitError) as error:
                ack = None  # nobody heard us
                hint = MIGRATED if isinstance(error, nats.errors.NoRespondersError) else ""
            except nats.errors.MaxPayloadError as error:
                raise Invalid(f"An event of {subject} is larger than the log takes.") from error
            except (nats.errors.Error, OSError) as error:
                raise Unavailable("The connection to the event log is closed.") from error
            if ack is not None:
                code = ack.error.err_code if ack.error else 0
                if code == 0:
                    APPENDED.labels(stream).inc(len(drafts))
                    return ack.seq
                if code in (WRONG_LAST_SEQUENCE, DUPLICATE_IN_BATCH):
                    in_doubt = in_doubt or code == DUPLICATE_IN_BATCH
                    if (stored := await self._stored(subject, drafts, expected, deadline)) is not None:
                        return stored
                    if not in_doubt:
                        raise WrongSequence(subject)
                elif code not in PASSING:
                    assert ack.error
                    raise Unavailable(f"The event log refused: {ack.error.description} ({code}).")
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    f"The event log did not take the event in {self._timeout:.0f} s.{hint}"
                    + (" It may still have been stored: look before you ask again." if in_doubt else "")
                )
            await asyncio.sleep(random.uniform(0.002, 0.02) if ack else 0.1)  # noqa: S311 (jitter)

    async def _require_whole(self, deadline: float) -> None:
        """Raises NotWhole while the log is brought back from files; looks once for each renewal, until it is over."""
        while self._whole != (seen := self.renewals):
            try:
                await require_whole(self._client, within=1)
                self._whole = seen
            except NotWhole:
                raise
            except Unavailable:
                if self._client.is_closed or asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def take_in(self, stream: str, messages: Sequence[Guarded], *, after: int) -> None:
        """Append 1 to 1,000 messages together as they are, if `after` is the last sequence of the stream.

        Raises WrongSequence, Invalid for what the log does not take, Unavailable.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        guard = {"Nats-Expected-Last-Sequence": str(after)}
        first = msgspec.structs.replace(messages[0], headers=messages[0].headers | guard)
        group = GroupCommit(self._client)
        while True:
            code, told = 0, f"it did not answer in {self._timeout:.0f} s"
            try:
                ack = await group.publish_together([first, *messages[1:]])
                if ack.error is None:
                    return
                code, told = ack.error.err_code, f"{ack.error.description} ({ack.error.err_code})"
            except nats.errors.MaxPayloadError as error:
                raise Invalid(f"An event for {stream} is larger than the log takes.") from error
            except (nats.errors.Error, OSError) as error:
                if self._client.is_closed:
                    raise Unavailable("The connection to the event log is closed.") from error
            end = (await self.end(stream)).sequence
            if end == after + len(messages) and await self.event_id(stream, end) == messages[-1].headers["ce-id"]:
                return  # an earlier try was stored
            if end != after:
                raise WrongSequence(stream)
            if code == DUPLICATE_IN_BATCH:
                raise Invalid(f"Two events for {stream} have the same id.")
            passing = code == 0 or code in PASSING
            if not passing or asyncio.get_running_loop().time() > deadline:
                raise Unavailable(f"The event log refused what was to go to {stream}: {told}.")
            await asyncio.sleep(0.1)

    async def _publish(self, subject: str, drafts: Sequence[Draft], expected: int) -> PubAck:
        """One try. Raises what nats-py raises."""
        if not (self._client.is_connected or self._client.is_closed):
            raise nats.errors.OutboundBufferLimitError
        source = "/" + subject
        group = self._groups.setdefault(stream_of(subject), GroupCommit(self._client))
        first = Guarded(subject, encode(drafts[0].event), drafts[0].headers(source), expected)
        if len(drafts) == 1:
            return await group.publish(first)
        others = [Guarded(subject, encode(draft.event), draft.headers(source), None) for draft in drafts[1:]]
        return await group.publish_together([first, *others])

    async def _stored(self, subject: str, drafts: Sequence[Draft], expected: int, deadline: float) -> int | None:
        """The last sequence of `drafts` if an earlier try stored them; None if not all of them can be seen (yet).

        A replica that is behind shows less than there is. Raises WrongSequence if it was somebody else's.
        """
        later, _ = await self._read_page(subject, expected, deadline, len(drafts))
        if later and later[0].id != drafts[0].id:
            raise WrongSequence(subject)
        return later[-1].sequence if len(later) == len(drafts) else None

    async def read(self, subject: str, after: int = 0) -> list[Recorded]:
        events: list[Recorded] = []
        deadline = asyncio.get_running_loop().time() + self._timeout
        while True:
            page, more = await self._read_page(subject, after, deadline)
            events += page
            if not more:
                return events
            after = events[-1].sequence if page else after

    async def holds(self, subject: str) -> bool:
        """Whether there is any event on a literal subject. Raises Unavailable."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        messages, _ = await self._get(stream_of(subject), subject, 0, deadline, 1)
        return bool(messages)

    async def _read_page(
        self, subject: str, after: int, deadline: float, limit: int = BATCH_LIMIT
    ) -> tuple[list[Recorded], bool]:
        """Up to `limit` events on a subject, and whether there are more."""
        messages, more = await self._get(stream_of(subject), subject, after, deadline, limit)
        return [_record(sequence, message) for sequence, message in messages], more

    async def _get(
        self, stream: str, subject: str, after: int, deadline: float, limit: int = BATCH_LIMIT
    ) -> tuple[list[tuple[int, Msg]], bool]:
        """Up to `limit` messages by one batched direct get (ADR-31), and whether there are more."""
        request = msgspec.json.encode({"seq": after + 1, "next_by_subj": subject, "batch": limit})
        while True:
            page = _Page()
            try:
                inbox = self._client.new_inbox()
                subscription = await self._client.subscribe(inbox, cb=page.receive)
                try:
                    await self._client.publish(f"$JS.API.DIRECT.GET.{stream}", request, reply=inbox)
                    more = await asyncio.wait_for(page.more, 2)
                finally:
                    if not self._client.is_closed:
                        await subscription.unsubscribe()
            except (TimeoutError, nats.errors.Error, OSError) as error:
                if asyncio.get_running_loop().time() > deadline or self._client.is_closed:
                    hint = MIGRATED if isinstance(error, nats.errors.NoRespondersError) else ""
                    raise Unavailable(f"The event log does not answer a read of {subject}.{hint}") from error
                await asyncio.sleep(0.1)
            else:
                return page.messages, more

    async def follow(
        self, stream: str, after: int = 0, *, limit: int = BATCH_LIMIT, skips: Collection[type[Event]] = ()
    ) -> Batches:
        skipped = frozenset(map(type_of, skips))
        async with aclosing(self._messages(stream, after, limit)) as pages:
            async for messages in pages:
                batch, unknown = _records(messages, skipped)
                if batch:
                    yield batch
                if unknown:
                    raise unknown

    async def tail(self, stream: str, after: int = 0, *, limit: int = BATCH_LIMIT) -> StoredBatches:
        """As `follow`, for whoever looks at what is stored: nothing is decoded."""
        async with aclosing(self._messages(stream, after, limit)) as pages:
            async for messages in pages:
                yield [_stored(stream, sequence, message) for sequence, message in messages]

    async def watch(self, after: Mapping[str, int]) -> StoredBatches:
        """What is appended to streams past these sequences, for ever, over any loss of the connection.

        In bunches, each in the order in which they were stored. Every LOOK_SECONDS it asks each stream once: that costs
        the server less than a consumer, which delivers each event by itself (services/README.md has figures).
        Raises Unavailable when the connection is closed, or when a stream is no longer the one that was read.
        """
        positions, known, checked = dict(after), dict[str, str | None](), -1
        while True:
            seen = self.renewals
            try:
                if checked != seen:  # numbers are used again after a restore: is it still the log that was read?
                    there = {each: await self.event_id(each, at) if at else None for each, at in positions.items()}
                    if replaced := [each for each, id_ in there.items() if known.setdefault(each, id_) != id_]:
                        break
                    checked = seen
                found = await asyncio.gather(*(self._look(stream, at) for stream, at in positions.items()))
            except Unavailable:
                if self._client.is_closed:
                    raise Unavailable("The connection to the event log is closed.") from None
                await asyncio.sleep(LOOK_SECONDS)
                continue
            if self.renewals != checked:
                continue
            for page, _ in found:
                if page:
                    last = page[-1]
                    positions[last.stream], known[last.stream] = last.sequence, last.headers.get("ce-id")
            if coming := sorted((each for page, _ in found for each in page), key=lambda stored: stored.stored_at):
                yield coming
            await asyncio.sleep(0 if any(more for _, more in found) else LOOK_SECONDS)
        raise Unavailable(f"Stream {replaced[0]} was replaced: it no longer is the one that was read.")

    async def _look(self, stream: str, after: int) -> tuple[list[Stored], bool]:
        """Up to 1,000 messages past `after`, and whether there are more."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        messages, more = await self._get(stream, ">", after, deadline)
        return [_stored(stream, sequence, message) for sequence, message in messages], more

    async def scan(
        self, stream: str, after: int = 0, *, until: int | None = None, limit: int = BATCH_LIMIT
    ) -> StoredBatches:
        """What is stored past `after`, up to `until` or where the stream ends now; in lists of 1 to `limit`.

        Raises as `follow`, but for UndecodableEvent, and Unavailable for a stream that ends before `until`.
        """
        end = (await self.end(stream)).sequence
        if (until := end if until is None else until) > end:
            raise Unavailable(f"Stream {stream} ends at {end}, before {until}.")
        if after >= until:
            return
        async with aclosing(self.tail(stream, after, limit=limit)) as pages:
            async for page in pages:
                yield [each for each in page if each.sequence <= until] if page[-1].sequence > until else page
                if page[-1].sequence >= until:
                    return

    async def sequence_before(self, stream: str, moment: datetime) -> int:
        """The last sequence of a stream whose event was appended before `moment`; 0 if none was.

        By the clocks of who appended (`ce-time`), which an export and an import keep; they may differ a little, and
        then so may this.
        """
        low, high = 0, (await self.end(stream)).sequence
        while low < high:
            middle = (low + high + 1) // 2
            there = await self.stored(stream, middle)
            low, high = (middle, high) if there and there.time < moment else (low, middle - 1)
        return low

    async def stored(self, stream: str, sequence: int) -> Stored | None:
        """The message at `sequence`, or None where there is none. Raises Unavailable."""
        try:
            found = await self._js.get_msg(stream, seq=sequence)
        except nats.js.errors.NotFoundError:
            return None
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"The event log does not answer a read of stream {stream}.") from error
        stored_at = found.time or datetime.fromtimestamp(0, UTC)
        return Stored(stream, found.subject or "", sequence, found.headers or {}, found.data or b"", stored_at)

    async def _messages(self, stream: str, after: int, limit: int) -> AsyncGenerator[list[tuple[int, Msg]], None]:
        """The messages of a stream past `after`, in order and for ever, over any loss of the connection."""
        position, known = after, None
        js = self._client.jetstream(timeout=2)  # a cluster may put the consumer on a node that is gone: ask again soon
        while True:
            consumer = _OrderedConsumer(self._client, js, stream, position)
            try:
                if position:  # numbers are used again after a restore: is it still the log that was read?
                    there = await self.event_id(stream, position)
                    if known not in (None, there):
                        break
                    known = there
                await consumer.start()
                while (messages := await consumer.next(limit)) is not None:
                    position, last = messages[-1]
                    known = (last.headers or {}).get("ce-id")
                    yield messages
            except (nats.errors.Error, OSError, Unavailable):
                if self._client.is_closed:
                    raise Unavailable("The connection to the event log is closed.") from None
                await asyncio.sleep(0.2)
            finally:
                await consumer.stop()
        raise Unavailable(f"Stream {stream} was replaced: event {position} is not the one that was read.")

    async def end(self, stream: str) -> StreamEnd:
        try:
            reply = await self._client.request(f"$JS.API.STREAM.INFO.{stream}", timeout=self._timeout)
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"The event log does not answer a question about stream {stream}.") from error
        info = msgspec.json.decode(reply.data, type=_StreamInfo)
        if info.error:
            raise Unavailable(f"Stream {stream}: {info.error.description}.{MIGRATED}")
        restored = info.config.metadata.get(RESTORED_AT)
        return StreamEnd(datetime.fromisoformat(restored) if restored else info.created, info.state.last_seq)

    async def event_id(self, stream: str, sequence: int) -> str | None:
        found = await self.stored(stream, sequence)
        return found.headers.get("ce-id") if found else None


def recorded(
    subject: str, sequence: int, headers: dict[str, str], body: bytes, skipped: Collection[str] = ()
) -> Recorded:
    """What is stored, as the event that it is; SKIPPED for a type in `skipped`. Raises UndecodableEvent."""
    if "ce-type" not in headers:
        raise UndecodableEvent(f"the message at sequence {sequence} on {subject} has no ce-type header")
    tag = headers["ce-type"]
    try:
        return Recorded(subject, sequence, SKIPPED if tag in skipped else decode(tag, body), headers)
    except UndecodableEvent as error:
        raise type(error)(f"the message at sequence {sequence} on {subject}: {error}") from error


def _record(sequence: int, message: Msg, skipped: Collection[str] = ()) -> Recorded:
    headers = message.headers or {}
    subject = headers.get("Nats-Subject", message.subject)  # an answer to a direct get comes on an inbox
    return recorded(subject, sequence, headers, message.data, skipped)


def _stored(stream: str, sequence: int, message: Msg) -> Stored:
    headers = message.headers or {}
    if "Nats-Time-Stamp" not in headers:  # from a consumer
        stored_at = datetime.fromtimestamp(stored_ns(message.reply) / 1e9, UTC)
        return Stored(stream, message.subject, sequence, headers, message.data, stored_at)
    stored_at = datetime.fromisoformat(headers["Nats-Time-Stamp"])
    kept = {name: value for name, value in headers.items() if name not in ADDED}
    return Stored(stream, headers["Nats-Subject"], sequence, kept, message.data, stored_at)


def _records(
    messages: Sequence[tuple[int, Msg]], skipped: Collection[str]
) -> tuple[list[Recorded], UndecodableEvent | None]:
    """The events up to the first that this code does not understand, and why it does not."""
    events: list[Recorded] = []
    try:  # what came before an error is kept
        events.extend(_record(sequence, message, skipped) for sequence, message in messages)
    except UndecodableEvent as error:
        return events, error
    return events, None


class _Page:
    """Collects the answers to one batched direct get. `more` resolves when the last one is in."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, Msg]] = []
        self.more: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def receive(self, message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get("Status")
        if self.more.done():
            return
        if status == "404":
            self.more.set_result(False)
        elif status == "503":
            self.more.set_exception(nats.errors.NoRespondersError())
        elif status not in (None, "204"):
            self.more.set_exception(nats.errors.Error(f"a read was answered with status {status}"))
        elif int(headers.get("Nats-Last-Sequence", 0)) != (self.messages[-1][0] if self.messages else 0):
            self.more.set_exception(nats.errors.Error("a part of the answer was lost on the way"))
        elif status == "204":
            self.more.set_result(headers.get("Nats-Num-Pending", "0") != "0")
        else:
            self.messages.append((int(headers["Nats-Sequence"]), message))


class _OrderedConsumer:
    """One ephemeral push consumer: messages in order, with flow control, until a gap or a silence.

    nats-py has one too, but it drops messages of a slow reader after it has counted them (2.16), and never slows the
    server down. This one answers flow control when the reader has taken what came.
    """

    HEARTBEAT = 2.0
    FORGOTTEN = 5.0  # seconds after which the server deletes one that nobody hears; no service may delete any

    def __init__(self, client: Client, js: JetStreamContext, stream: str, after: int) -> None:
        self._client = client
        self._js = js
        self._stream = stream
        self._after = after
        self._received = 0
        self._consumed = 0
        self._gap = False
        self._buffer: deque[Msg] = deque()
        self._wake = asyncio.Event()
        self._flow_reply: str | None = None
        self._renewals = renewals(client)
        self._subscription: Subscription | None = None
        self._heard = 0.0

    async def start(self) -> None:
        """Create the consumer on the server. Raises what nats-py raises."""
        inbox = self._client.new_inbox()
        self._subscription = await self._client.subscribe(
            inbox, cb=self._receive, pending_msgs_limit=0, pending_bytes_limit=0
        )
        await self._js.add_consumer(
            self._stream,
            ConsumerConfig(
                name=new_id_text(),
                deliver_subject=inbox,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self._after + 1,
                ack_policy=AckPolicy.NONE,
                max_deliver=1,
                flow_control=True,
                idle_heartbeat=self.HEARTBEAT,
                inactive_threshold=self.FORGOTTEN,
                mem_storage=True,
                num_replicas=1,
            ),
        )
        self._heard = asyncio.get_running_loop().time()

    async def _receive(self, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        if message.headers and "Status" in message.headers:
            if int(message.headers.get("Nats-Last-Consumer", self._received)) != self._received:
                self._gap = True
            # Flow control asks on the reply subject, a heartbeat of a stalled consumer in a header.
            if reply := message.reply or message.headers.get("Nats-Consumer-Stalled"):
                self._flow_reply = reply
                self._wake.set()
            return
        self._received += 1
        self._buffer.append(message)
        self._wake.set()

    async def next(self, limit: int) -> list[tuple[int, Msg]] | None:
        """1 to `limit` messages with their stream sequences, as soon as there are any; None: it has to be renewed."""
        while not self._buffer:
            self._wake.clear()
            if self._flow_reply:
                await self._client.publish(self._flow_reply)
                self._flow_reply = None
            try:
                async with asyncio.timeout(1):
                    await self._wake.wait()
            except TimeoutError:
                silent = asyncio.get_running_loop().time() - self._heard > 2.5 * self.HEARTBEAT
                renewed = renewals(self._client) != self._renewals
                if silent or renewed or self._gap or self._client.is_closed:
                    return None
        taken: list[tuple[int, Msg]] = []
        while self._buffer and len(taken) < limit:
            message = self._buffer.popleft()
            _, sequence, consumed = delivery(message.reply)
            if consumed != self._consumed + 1:
                self._buffer.clear()
                self._gap = True
                break
            self._consumed = consumed
            taken.append((sequence, message))
        return taken or None

    async def stop(self) -> None:
        """Hear no more; the server deletes the consumer then."""
        if self._subscription and not self._client.is_closed:
            with suppress(nats.errors.Error, OSError):
                await self._subscription.unsubscribe()
