"""What a listener would do with an event: it hears it on a log that tells nobody, and what it does is noted instead."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

from common.errors import Invalid, Retry, Unavailable
from common.event_log import Batches, Draft, Recorded, Stored, StreamEnd, WrongSequence, stream_of
from common.events import UPCASTS, Event, UndecodableEvent, decode, encode, type_of
from common.group_commit import BATCH_LIMIT
from common.listener import Listener
from common.telemetry import Cause, cause
from common.topology import CONSUMER

Outcome = Literal["done", "nothing", "again", "open", "failed"]
"""What hearing an event comes to. `again`: it would be put back. `open`: what follows hangs on somebody's answer."""


class Reading(Protocol):
    """The side of an event log by which nothing is told."""

    @property
    def renewals(self) -> int:
        """As `EventLog.renewals`."""

    async def read(self, subject: str, after: int = 0) -> list[Recorded]:
        """As `EventLog.read`."""

    async def end(self, stream: str) -> StreamEnd:
        """As `EventLog.end`."""

    async def event_id(self, stream: str, sequence: int) -> str | None:
        """As `EventLog.event_id`."""


class Appended(msgspec.Struct, frozen=True):
    """An event that would be on the log."""

    subject: str
    event: Event

    @property
    def kind(self) -> str:
        return type_of(type(self.event))


class Noted(msgspec.Struct, frozen=True):
    """What would be done elsewhere: asked of a company, posted to a webhook. `what` is for a person."""

    kind: str
    what: str


Effect = Appended | Noted


class NotForeseen(Exception):
    """What a listener does next hangs on an answer for which nobody is asked in a rehearsal; the text says whose."""


class Heard(msgspec.Struct, frozen=True):
    """What a listener would do with an event, and what that comes to.

    `why`: what it fails with, or on what the rest hangs. `after`: seconds after which it would hear it again.
    """

    outcome: Outcome
    effects: tuple[Effect, ...] = ()
    why: str = ""
    after: float = 0


class _Subject(msgspec.Struct):
    """What a rehearsal has told on a subject, on top of what is really there up to sequence `base`."""

    base: int
    events: list[Recorded]


class Rehearsal:
    """An event log on which all that is appended stays here: it can be read and guards, and no server hears of it.

    It is the real log as it is now, with what was rehearsed on top. A subject on which something was rehearsed stays
    as it was then, whatever is really told on it meanwhile. One process, one event loop.
    """

    def __init__(self, log: Reading) -> None:
        self._log = log
        self._subjects: dict[str, _Subject] = {}
        self._ends: dict[str, int] = {}
        self._effects: list[Effect] = []
        self._appending = asyncio.Lock()

    @property
    def renewals(self) -> int:
        return self._log.renewals

    async def append(self, subject: str, drafts: Sequence[Draft], *, expected: int) -> int:
        if not 1 <= len(drafts) <= BATCH_LIMIT:
            raise Invalid(f"One decision may make 1 to {BATCH_LIMIT} events, this one made {len(drafts)}.")
        stream = stream_of(subject)
        async with self._appending:  # so that a guard holds until its events are here
            there = await self.read(subject, max(0, expected - 1))
            later = there[1:] if expected and there and there[0].sequence == expected else there
            if later and later[0].id == drafts[0].id:
                return later[len(drafts) - 1].sequence
            if later or (expected and not there):
                raise WrongSequence(subject)
            end = self._ends[stream] if stream in self._ends else (await self._log.end(stream)).sequence
            told = self._subjects.setdefault(subject, _Subject(expected, []))
            for sequence, draft in enumerate(drafts, max(end, expected) + 1):
                event = decode(type_of(type(draft.event)), encode(draft.event))  # what the wire would make of it
                told.events.append(Recorded(subject, sequence, event, draft.headers("/" + subject)))
                self._effects.append(Appended(subject, event))
                self._ends[stream] = sequence
            return self._ends[stream]

    async def read(self, subject: str, after: int = 0) -> list[Recorded]:
        told = self._subjects.get(subject)
        if told is None:
            return await self._log.read(subject, after)
        real = await self._log.read(subject, after) if after < told.base else []
        return [each for each in real if each.sequence <= told.base] + [
            each for each in told.events if each.sequence > after
        ]

    def follow(self, stream: str, after: int = 0, **_: Any) -> Batches:
        """Raises Unavailable: whoever follows a stream would wait for ever for what nobody tells."""
        raise Unavailable(f"Nobody follows {stream} past {after} in a rehearsal.")

    async def end(self, stream: str) -> StreamEnd:
        end = await self._log.end(stream)
        return msgspec.structs.replace(end, sequence=max(end.sequence, self._ends.get(stream, 0)))

    async def event_id(self, stream: str, sequence: int) -> str | None:
        for subject, told in self._subjects.items():
            if stream_of(subject) == stream:
                for each in told.events:
                    if each.sequence == sequence:
                        return each.id
        return await self._log.event_id(stream, sequence)

    def note(self, kind: str, what: str) -> None:
        """Something would be done elsewhere now."""
        self._effects.append(Noted(kind, what))

    async def hear(self, listener: Listener[Any], stored: Stored) -> Heard:
        """Have a listener, made on this log, hear an event that `is_heard`; one at a time. Raises Unavailable."""
        self._effects = []
        event_id = stored.headers.get("ce-id", "")
        why = Cause(stored.headers.get("correlation-id", event_id), event_id, stored.headers.get("traceparent"))
        before = cause.set(why)
        try:
            await listener.on(stored.decoded().event)
        except Retry as retry:
            return Heard("again", tuple(self._effects), after=retry.after)
        except NotForeseen as error:
            return Heard("open", tuple(self._effects), str(error))
        except Unavailable:
            raise
        except Exception as error:
            return Heard("failed", tuple(self._effects), f"{type(error).__name__}: {error}")
        finally:
            cause.reset(before)
        return Heard("done" if self._effects else "nothing", tuple(self._effects))


def is_heard(listener: Listener[Any], stored: Stored) -> bool:
    """Whether a listener is handed an event of its stream, and not only told that it passed."""
    if not CONSUMER[listener.durable].hears(stored.stream, stored.subject):
        return False
    if stored.type not in UPCASTS:
        return not stored.type or stored.type in listener.hears
    try:
        return type_of(type(stored.decoded().event)) in listener.hears
    except UndecodableEvent:
        return True  # it is handed what it fails with


class Summary:
    """What a listener would do with all of some events."""

    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.effects: Counter[str] = Counter()

    def count(self, heard: Heard) -> None:
        """One more."""
        self.outcomes[heard.outcome] += 1
        self.effects.update(effect.kind for effect in heard.effects)
