"""Decode, call on(), then ack, nak with a delay, or dead letter. The only place that acks."""

import asyncio
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from common.errors import Invalid, Retry, Unavailable
from common.event_log import delivery, restorations, stored_ns
from common.events import EVENTS, OWNERS, UPCASTS, Event, UndecodableEvent, UnknownEvent, decode, type_of
from common.telemetry import DEAD_LETTERS, HANDLED, Cause, cause, heard
from common.topology import CONSUMER, require_whole
from common.tracing import NOTHING, Span, span, tracer

E_contra = TypeVar("E_contra", bound=Event, contravariant=True)

log = structlog.get_logger()


class Listener(ABC, Generic[E_contra]):
    """Hears the events it names as its type argument, and does one deed for each.

    `on` returns: the event is done. It raises `Retry(after)`: the event comes again after that many seconds, or a day
    if that is less. It raises Unavailable: it comes again, as often as it takes. It raises anything else: it comes
    again with growing gaps, and after `attempts` failures goes to the stream DEAD, with an alarm. (A delivery that
    nobody here saw the end of counts as one, unless it `waits`: an event that kills its process is given up on too.)
    Events of one aggregate run one after the other, others side by side, up to `concurrency` at a time. A redelivery or
    a second replica may break that order, so what follows a foreign aggregate looks at `event.version`.

    After its last attempt `give_up` is called, before the event goes to DEAD.

    `patience`: seconds that a running `on` is given to finish when the service stops; then it is cancelled, and the
    event put back.

    `waits`: `on` puts events back by Retry as a matter of course, many of them or many times. Deliveries then say
    nothing about failures, so only those that this process saw count as attempts (what may kill its process is counted
    elsewhere, as the batch service does); and verdicts are collected for a moment before the server is told. While more
    than 1,024 are pending, nats-server 2.15 gives up its look for what is due again, for 100 ms, whenever a verdict
    comes in the middle of it (`checkPending`), and with verdicts all the time finds nothing for seconds.
    """

    durable: ClassVar[str]
    attempts: ClassVar[int] = 10
    concurrency: ClassVar[int] = 256
    patience: ClassVar[float] = 5
    waits: ClassVar[bool] = False
    hears: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        """Check the declaration: the events are of the stream that the durable consumer is on. Raises TypeError."""
        super().__init_subclass__()
        for base in getattr(cls, "__orig_bases__", ()):
            if get_origin(base) is Listener and not isinstance(base.__args__[0], TypeVar):
                events = get_args(base.__args__[0]) or base.__args__
                if cls.durable not in CONSUMER:
                    raise TypeError(f"{cls.__name__}: no consumer {cls.durable!r} in common/topology.py: add it there")
                stream = CONSUMER[cls.durable].stream
                owned = OWNERS[stream.lower()]
                if foreign := set(events) - set(get_args(owned) or (owned,)):
                    raise TypeError(f"{cls.__name__}: {foreign} is not on stream {stream} of consumer {cls.durable}")
                cls.hears = frozenset(type_of(event) for event in events)

    def key(self, event: E_contra) -> object:  # noqa: ARG002 (subclasses look at it)
        """Events with the same key run one after the other; None stands for their aggregate."""
        return None

    @abstractmethod
    async def on(self, event: E_contra) -> None:
        """Do the deed. It may be called again for the same event, and must then change nothing."""

    async def give_up(self, event: E_contra, error: Exception) -> None:
        """Tell whoever waits for the deed that it is not done. If this fails, the event comes again."""


class _Again(msgspec.Struct):
    """An event that is to be heard once more, by its headers. `heard`: when that was done, or why it failed."""

    headers: Mapping[str, str]
    heard: "asyncio.Future[None]"


class Subscription:
    """Runs one listener on its durable consumer, which must exist (`boxoffice migrate`)."""

    EXPIRES = 2.0  # seconds that one pull request waits on the server; a lost one is noticed a second later
    COLLECT = 0.25  # seconds of verdicts; of 0.05, 0.1 and 0.2 only the last gave the server time to look at 100,000

    def __init__(self, listener: Listener[Any], client: Client) -> None:
        self.name = listener.durable
        self.problem: str | None = None
        self._listener = listener
        self._client = client
        self._consumer = CONSUMER[listener.durable]
        self._stopping = False
        self._restorations = 0  # of the log, when this began to listen
        self._asked = 0  # messages asked for that have not come yet
        self._in_flight: dict[str, float] = {}  # by reply subject: when the server last heard of it, oldest first
        self._chains: dict[object, deque[tuple[Msg | _Again, Event]]] = {}
        self._verdicts: list[tuple[str, bytes]] = []  # collected, by reply subject
        self._known: dict[int, tuple[int, int]] = {}  # by sequence: failures of the event, deliveries that were none
        self._running: set[asyncio.Task[None]] = set()
        self._progress = asyncio.Event()
        self._log = log.bind(listener=listener.durable)
        self._dead_letters = DEAD_LETTERS.labels(listener.durable)  # from the start, so that the first one is a rise
        self._outcomes = {
            outcome: HANDLED.labels(listener.durable, outcome)
            for outcome in ("done", "retry", "error", "unknown", "dead")
        }

    async def run(self) -> None:
        """Listen until cancelled; then let what runs finish, and put the rest back for others.

        When the log is restored it ends too, to begin anew: what was heard is of another log, in which the same number
        means another event. So the server, too, is told nothing more of what came of it. Raises NotWhole as long as
        that is under way, Unavailable.
        """
        self._stopping, self._asked, self._restorations = False, 0, restorations(self._client)
        if self._restorations:  # else nothing may come between who begins and what others put back: it keeps its order
            await require_whole(self._client)
        self._in_flight.clear()
        self._known.clear()
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(
            inbox, cb=self._receive, pending_msgs_limit=0, pending_bytes_limit=0
        )
        helpers = [asyncio.create_task(self._keep_alive()), asyncio.create_task(self._tell_now_and_then())]
        try:
            await self._pull(inbox)
        finally:
            try:
                await self._drain(subscription)
            finally:  # also when it is cancelled once more
                for task in (*helpers, *self._running):
                    task.cancel()
            await self._tell()

    async def settled(self) -> int:
        """The stream sequence up to which every event is done with, on all replicas. Raises Unavailable."""
        try:
            info = await self._client.jetstream(timeout=2).consumer_info(self._consumer.stream, self.name)
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"consumer {self.name} does not answer: {error!r}") from error
        return info.ack_floor.stream_seq if info.ack_floor else 0

    def understood(self, stream: str, subject: str, headers: Mapping[str, str], body: bytes) -> Event:
        """An event that is to be heard once more. Raises Invalid for what the listener would not hear."""
        tag = headers.get("ce-type", "")
        where = f"What is on {subject}"
        if not self._consumer.hears(stream, subject):
            part = self._consumer.subject or "all"
            raise Invalid(f"{self.name} does not hear {subject} of {stream}, but {part} of {self._consumer.stream}.")
        try:
            event = decode(tag, body)
        except UndecodableEvent as error:
            raise Invalid(f"{where} cannot be decoded, so {self.name} cannot hear it: {error}") from error
        if type_of(type(event)) not in self._listener.hears:
            raise Invalid(f"{where} is {tag}, and {self.name} hears only {', '.join(sorted(self._listener.hears))}.")
        return event

    async def redeliver(self, subject: str, headers: Mapping[str, str], event: Event) -> None:
        """Have the listener hear an event that `understood` made, in its turn. Raises what `on` raises.

        Whoever is cancelled before it has begun has changed nothing. When this stops, it is cancelled from here.
        """
        again = _Again(headers, asyncio.get_running_loop().create_future())
        if self._stopping:
            again.heard.cancel()
        else:
            self._enqueue(self._listener.key(event) or subject, again, event)
        await again.heard

    async def _pull(self, inbox: str) -> None:
        """Keep asking for as many messages as there is room for: whenever half of it is free, or nothing is coming."""
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._consumer.stream}.{self.name}"
        limit = self._listener.concurrency
        while not self._replaced:
            room = limit - len(self._in_flight) - self._asked
            if room > limit // 2 or (room > 0 and self._asked == 0):
                request = {"batch": room, "expires": int(self.EXPIRES * 1e9)}
                self._asked += room
                with suppress(nats.errors.Error, OSError):  # not heard: asked again below
                    await self._client.publish(subject, msgspec.json.encode(request), reply=inbox)
            self._progress.clear()
            try:
                async with asyncio.timeout(self.EXPIRES + 1):
                    await self._progress.wait()
            except TimeoutError:
                self._asked = 0  # the server would have said by now that the request ran out
            if self.problem:
                await asyncio.sleep(1)

    async def _receive(self, message: Msg) -> None:
        headers = message.headers or {}
        if status := headers.get("Status"):
            self._asked = max(0, self._asked - int(headers.get("Nats-Pending-Messages", self._asked)))
            problem = None
            if status not in ("404", "408"):  # nothing there, ran out
                problem = f"consumer {self.name} on stream {self._consumer.stream} does not answer ({status})"
                if problem != self.problem:
                    self._log.error("consumer_missing", problem=problem, mend="run `boxoffice migrate`")
            self.problem = problem
            self._progress.set()
            return
        self._asked -= 1
        self.problem = None
        tag = headers.get("ce-type", "")
        if tag in EVENTS and tag not in self._listener.hears and tag not in UPCASTS:
            await self._settle(message, b"+ACK")
            return
        self._in_flight[message.reply] = asyncio.get_running_loop().time()
        try:
            event = decode(tag, message.data)
            if type_of(type(event)) not in self._listener.hears:  # an old shape of something else
                await self._settle(message, b"+ACK")
                return
            key = self._listener.key(event) or message.subject
        except Exception as error:
            self._start(self._fail_undecoded(message, error))
            return
        self._enqueue(key, message, event)

    def _enqueue(self, key: object, message: Msg | _Again, event: Event) -> None:
        """Have an event heard after those with the same key that came before."""
        if (chain := self._chains.get(key)) is not None:
            chain.append((message, event))
        else:
            chain = self._chains[key] = deque([(message, event)])
            self._start(self._run_chain(key, chain))

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run_chain(self, key: object, chain: deque[tuple[Msg | _Again, Event]]) -> None:
        while chain and not self._stopping:
            message, event = chain.popleft()
            await (self._repeat(message, event) if isinstance(message, _Again) else self._handle(message, event))
        if not chain:
            self._chains.pop(key, None)

    @staticmethod
    def _be_caused_by(headers: Mapping[str, str]) -> None:
        """What this task does from now on is because of that event."""
        event_id = headers.get("ce-id", "")
        cause.set(Cause(headers.get("correlation-id", event_id), event_id, headers.get("traceparent")))
        heard.set(event_id)

    def _span(self, headers: Mapping[str, str], message: Msg | None) -> Span:
        """That an event is heard now; before it, how long it waited to be, since the server stored it."""
        if tracer.get() is None:
            return NOTHING
        told: dict[str, str | int] = {
            "messaging.system": "nats",
            "messaging.destination.name": self._consumer.stream,
            "messaging.consumer.group.name": self.name,
            "messaging.message.id": headers.get("ce-id", ""),
            "boxoffice.event": headers.get("ce-type", ""),
            "boxoffice.correlation_id": headers.get("correlation-id", ""),
        }
        if message is not None:
            told["boxoffice.delivery"] = delivery(message.reply)[0]
            with span(f"wait {self.name}", told=told, since=stored_ns(message.reply)):
                pass
        return span(f"hear {self.name}", "consumer", told)

    async def _repeat(self, again: _Again, event: Event) -> None:
        """One event that is heard once more; whoever wants that decides what becomes of it."""
        if again.heard.done():
            return  # they are gone
        self._be_caused_by(again.headers)
        with self._span(again.headers, None) as hearing:
            try:
                await self._listener.on(event)
            except asyncio.CancelledError:
                again.heard.cancel()
                raise
            except Exception as error:
                self._count("retry" if isinstance(error, Retry) else "error", hearing, error)
                if not again.heard.done():
                    again.heard.set_exception(error)
            else:
                self._count("done", hearing)
                if not again.heard.done():
                    again.heard.set_result(None)

    async def _handle(self, message: Msg, event: Event) -> None:
        """One event, from on() to its settlement."""
        headers = message.headers or {}
        self._be_caused_by(headers)
        with self._span(headers, message) as hearing:
            try:
                await self._listener.on(event)
            except asyncio.CancelledError:
                await self._settle(message, b"-NAK")
                raise
            except Retry as retry:
                self._attempts(message, failed=False)
                await self._settle(message, _later(retry.after))
                self._count("retry", hearing)
            except Exception as error:
                await self._fail(message, error, event, hearing)
            else:
                if self._known:
                    self._known.pop(delivery(message.reply)[1], None)
                await self._settle(message, b"+ACK")
                self._count("done", hearing)

    def _count(self, outcome: str, hearing: Span, error: Exception | None = None) -> None:
        self._outcomes[outcome].inc()
        hearing.tell("boxoffice.outcome", outcome)
        if error and outcome != "retry":
            hearing.fail(type(error).__name__)

    def _attempts(self, message: Msg, *, failed: bool) -> int:
        """How often an event was tried in vain, now that this delivery has `failed`, or did not and is put back."""
        deliveries, sequence, _ = delivery(message.reply)
        failures, excused = self._known.get(sequence, (0, 0))
        failures, excused = failures + failed, excused + (not failed)
        if failed or not self._listener.waits:  # what waits may be settled elsewhere, and would be remembered for ever
            self._known[sequence] = failures, excused
        return failures if self._listener.waits else deliveries - excused

    async def _fail_undecoded(self, message: Msg, error: Exception) -> None:
        headers = message.headers or {}
        self._be_caused_by(headers)
        with self._span(headers, message) as hearing:
            await self._fail(message, error, None, hearing)

    async def _fail(self, message: Msg, error: Exception, event: Event | None, hearing: Span) -> None:
        """Back off, or give up after the last attempt. An unavailable server is no reason to give up on an event.

        Nor is one that only newer code knows: while that is rolled out, a process that has it will hear it.
        """
        deliveries, sequence, _ = delivery(message.reply)
        passing = isinstance(error, Unavailable | UnknownEvent)
        attempt = self._attempts(message, failed=not passing)
        told = self._log.bind(subject=message.subject, sequence=sequence, attempt=attempt, error=repr(error))
        last = attempt >= self._listener.attempts or isinstance(error, UndecodableEvent)
        if passing or not last:
            unknown = isinstance(error, UnknownEvent)
            tries = max(1, attempt) if self._listener.waits and not unknown else deliveries
            delay = random.uniform(0.5, 1) * min(60, 2 ** min(tries, 10))  # noqa: S311 (jitter)
            told.warning("listener_failed", again_in=round(delay, 1))
            await self._settle(message, _later(delay))
            self._count("unknown" if unknown else "error", hearing, error)
            return
        try:
            if event is not None:
                await self._listener.give_up(event, error)
            await self._bury(message, attempt, sequence, error)
        except Exception as trouble:
            told.warning("not_given_up_yet", trouble=repr(trouble))
            await self._settle(message, _later(5))  # the next delivery tries again to bury it
            return
        self._known.pop(sequence, None)
        told.error("dead_letter")
        self._dead_letters.inc()
        self._count("dead", hearing, error)
        await self._settle(message, b"+TERM")

    async def _bury(self, message: Msg, attempts: int, sequence: int, error: Exception) -> None:
        """Put the event on DEAD as it is, with its own headers and what went wrong. Once, however often it is tried."""
        headers = {key: value for key, value in (message.headers or {}).items() if not key.startswith("Nats-")}
        headers |= {
            "Nats-Msg-Id": f"{self.name}.{sequence}",
            "dead-listener": self.name,
            "dead-subject": message.subject,
            "dead-stream": self._consumer.stream,
            "dead-sequence": str(sequence),
            "dead-attempts": str(attempts),
            "dead-error": f"{type(error).__name__}: {error}"[:2000],
        }
        reply = await self._client.request(f"dead.{self.name}", message.data, timeout=5, headers=headers)
        if b'"error"' in reply.data:
            raise Unavailable(f"stream DEAD refused a dead letter: {reply.data.decode()}")

    async def _settle(self, message: Msg, verdict: bytes) -> None:
        """Tell the server, now or with what is collected. If it does not hear it, it delivers again after ack_wait."""
        self._in_flight.pop(message.reply, None)
        self._progress.set()
        self._verdicts.append((message.reply, verdict))
        if not self._listener.waits:
            await self._tell()

    @property
    def _replaced(self) -> bool:
        """Whether what was heard is of another log."""
        return self._restorations != restorations(self._client)

    async def _tell(self) -> None:
        verdicts, self._verdicts = self._verdicts, []
        if self._replaced:
            return
        with suppress(nats.errors.Error, OSError):
            for reply, verdict in verdicts:
                await self._client.publish(reply, verdict)

    async def _tell_now_and_then(self) -> None:
        while self._listener.waits:
            await asyncio.sleep(self.COLLECT)
            await self._tell()

    async def _keep_alive(self) -> None:
        """Tell the server, well within ack_wait, that what came is still being worked on."""
        loop, ack_wait = asyncio.get_running_loop(), self._consumer.ack_wait
        while True:
            await asyncio.sleep(ack_wait / 4)
            if self._replaced:
                return
            with suppress(nats.errors.Error, OSError):
                for reply, heard in list(self._in_flight.items()):
                    if loop.time() - heard < ack_wait / 2:
                        break
                    await self._client.publish(reply, b"+WPI")
                    if self._in_flight.pop(reply, None) is not None:  # not settled meanwhile
                        self._in_flight[reply] = loop.time()

    async def _drain(self, subscription: NatsSubscription) -> None:
        """Begin nothing new, take in what is on its way, put back what waits; then let what runs finish."""
        self._stopping = True
        with suppress(nats.errors.Error, OSError):
            await asyncio.wait_for(subscription.drain(), 3)  # type: ignore[no-untyped-call]  # nats-py forgot
        for chain in list(self._chains.values()):
            while chain:
                message, _ = chain.popleft()
                if isinstance(message, _Again):
                    message.heard.cancel()
                else:
                    await self._settle(message, b"-NAK")
        self._chains.clear()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=self._listener.patience)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1)


LONGEST = 86_400.0
"""Seconds that an event is put back for at most. The server counts nanoseconds in 64 bits: 300 years are none to it."""


def _later(seconds: float) -> bytes:
    return b'-NAK {"delay": %d}' % max(1, int(min(seconds, LONGEST) * 1e9))
