"""Where something is in the log: by the subject it would have, or by the time that its id tells."""

import re
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from common.aggregate import Decider
from common.errors import Invalid, NotFound, Unavailable
from common.event_log import JetStreamLog, Recorded, Stored, stream_of
from common.events import UndecodableEvent
from common.progress import Progress, untold
from common.topology import HISTORY, STREAMS

SKEW = timedelta(minutes=1)
"""By so much the clocks of who makes an id and who appends an event may differ."""

MILLISECONDS = 80
"""Bits of a UUIDv7 behind its time (RFC 9562)."""


SUBJECT = re.compile(r"[a-z]+(\.[a-z]+)?\.[0-9a-f-]{36}")
"""What subjects of events look like; no wildcards."""


class Place(msgspec.Struct, frozen=True):
    """An aggregate with its events, from the first. `about`: the id that was asked for, if it is of a part of it."""

    events: Sequence[Recorded]
    about: str = ""


def streams_of(service: str | None) -> Sequence[str]:
    """The streams of history that a service writes, by its name or theirs; all of them for None. Raises Invalid."""
    if service is None:
        return HISTORY
    named = [each.name for each in STREAMS if each.name in HISTORY and service in (*each.writers, each.name.lower())]
    if not named:
        there = sorted({writer for each in STREAMS if each.name in HISTORY for writer in each.writers})
        raise Invalid(
            f"service: There is no {service!r} with a history; there are {', '.join(there)}.", field="service"
        )
    return named


def born(id_text: str) -> datetime | None:
    """When a UUIDv7 was made; None for what is none."""
    try:
        made = UUID(id_text)
    except ValueError:
        return None
    return datetime.fromtimestamp((made.int >> MILLISECONDS) / 1000, UTC) if made.version == 7 else None


async def since_birth(log: JetStreamLog, stream: str, id_text: str) -> int:
    """The sequence behind which whatever names an id is; 0 for an id that does not tell its time."""
    made = born(id_text)
    return await log.sequence_before(stream, made - SKEW) if made else 0


async def find(
    log: JetStreamLog,
    deciders: Sequence[Decider[Any, Any, Any]],
    wanted: str,
    service: str | None = None,
    *,
    progress: Progress = untold,
) -> Place:
    """The aggregate of an id or a subject, or the one that holds it: for an order, its book.

    Raises NotFound, Invalid, Unavailable.
    """
    streams = streams_of(service)
    id_of_aggregate(wanted.rpartition(".")[2])  # no wildcard
    if "." in wanted:
        subjects, facts = ([wanted] if stream_of(wanted) in streams else []), []
    else:
        ruled = {decider.name for decider in deciders if stream_of(decider.name) in streams}
        subjects = [f"{name}.{wanted}" for name in sorted(ruled)]
        facts = [f"{stream.lower()}.{wanted}" for stream in streams if stream.lower() not in ruled]
    for subject in subjects:
        if events := await whole(log, subject):
            return Place(events)
    for stream in streams if "." not in wanted else ():
        if (first := await first_naming(log, stream, wanted, progress)) and first.subject not in facts:
            return Place(await whole(log, first.subject), wanted)
    for subject in facts:  # such as that a time is over: of what it is about there is more to tell
        if events := await whole(log, subject):
            return Place(events)
    raise NotFound(f"Nothing in {', '.join(streams)} is or names {wanted}.")


class Lead(msgspec.Struct, frozen=True):
    """Where an id leads to: the history of an aggregate, `at` the event that it is the id of; or to a trace, if there
    is no `service`.
    """

    id: str
    service: str | None = None
    at: int | None = None


async def leads(log: JetStreamLog, deciders: Sequence[Decider[Any, Any, Any]], wanted: str) -> Sequence[Lead]:
    """What an id is the id of: an aggregate (of several services, as a ticket has a listing and a book), a part of
    one, an event or a click. For what is no UUID: a subject or a correlation.

    Raises NotFound, Unavailable.
    """
    is_id, is_subject = is_uuid(wanted), SUBJECT.fullmatch(wanted) is not None
    names = sorted({decider.name for decider in deciders}, key=lambda name: (HISTORY.index(stream_of(name)), name))
    subjects = [f"{name}.{wanted}" for name in names] if is_id else [wanted] if is_subject else []
    subjects = [subject for subject in subjects if stream_of(subject) in HISTORY]
    if found := [lead_to(subject) for subject in subjects if await log.holds(subject)]:
        return found
    click: Lead | None = None
    facts: list[Lead] = []
    for stream in HISTORY:
        async with aclosing(log.scan(stream, await since_birth(log, stream, wanted))) as pages:
            async for page in pages:
                for stored in page:
                    if stored.headers.get("ce-id") == wanted:
                        return [lead_to(stored.subject, at=stored.sequence)]
                    if stored.headers.get("correlation-id") == wanted:
                        return [Lead(wanted)]
                    if stored.headers.get("causation-id") == wanted:
                        click = Lead(wanted)
                    elif is_id and quoted(wanted) in stored.body:
                        if stored.subject != f"{stream.lower()}.{wanted}":
                            return [Lead(wanted, stream.lower())]
                        facts = facts or [lead_to(stored.subject)]  # of what it is about there may be more to tell
    if found := [click] if click else facts:
        return found
    raise NotFound(f"Nothing in the log is, names or was caused by {wanted}.")


def lead_to(subject: str, at: int | None = None) -> Lead:
    """The history of a subject, by its id where that is enough."""
    service, _, rest = subject.partition(".")
    return Lead(rest if is_uuid(rest) else subject, service, at)


def is_uuid(text: str) -> bool:
    """Whether it is one, as the log writes it."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


async def whole(log: JetStreamLog, subject: str) -> Sequence[Recorded]:
    """All events of an aggregate. Raises Unavailable, also for one that this code does not know."""
    try:
        return await log.read(subject)
    except UndecodableEvent as error:
        mend = "Code that can decode it shows its history; `boxoffice events tail --since` shows it as it stands"
        raise Unavailable(f"{error}. {mend}.") from error


def id_of_aggregate(wanted: str) -> UUID:
    """Raises Invalid for what is no id."""
    try:
        return UUID(wanted)
    except ValueError:
        detail = f"id: Expected a UUID or a subject such as orders.01a2…, got {wanted!r}"
        raise Invalid(detail, field="id", got=wanted) from None


def quoted(id_text: str) -> bytes:
    """An id as it stands in JSON that names it."""
    return f'"{id_text}"'.encode()


async def first_naming(log: JetStreamLog, stream: str, id_text: str, progress: Progress) -> Stored | None:
    """The first event of a stream whose body names an id, if there is one."""
    named = quoted(id_text)
    after = await since_birth(log, stream, id_text)
    end = (await log.end(stream)).sequence
    async with aclosing(log.scan(stream, after, until=end)) as pages:
        async for page in pages:
            for stored in page:
                if named in stored.body:
                    return stored
            progress(stream, page[-1].sequence, end)
    return None
