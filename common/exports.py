"""Events as a file: one line of JSON each, between a line that says what it is and one that proves it whole."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from hashlib import sha256
from typing import BinaryIO, Literal, NoReturn

import msgspec
from msgspec import UNSET, UnsetType

from common.clock import now
from common.errors import Invalid, NotFound
from common.event_log import JetStreamLog, Recorded, Stored, merged, recorded
from common.events import UndecodableEvent, events_of
from common.masking import Masking
from common.progress import Progress, untold
from common.topology import HISTORY, STREAMS

FORMAT = 1
"""Of the files that this code writes, and the newest that it reads."""

LONGEST_LINE = 64 * 1024 * 1024
"""Bytes of a line at most; the log takes an event of one."""

WARNINGS = 5
"""So many events that this code does not understand are told one by one."""

ABOUT_PLACES = "REPAIRS"
"""The stream whose events name sequences of others, which are others where those are numbered anew."""

Warn = Callable[[str], None]


class Covered(msgspec.Struct, frozen=True):
    """What of a stream is in a file: `last` is the last sequence that was looked at, 0 if there was none."""

    created: datetime
    last: int


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The first line. `partial`: it holds some aggregates only, which an import numbers anew."""

    boxoffice: Literal["events"] = "events"
    format: int = FORMAT
    exported_at: datetime
    since: datetime | None = None
    until: datetime | None = None
    services: tuple[str, ...] = ()
    aggregate: str | None = None
    partial: bool = False
    masked: bool = False
    streams: dict[str, Covered]


class Line(msgspec.Struct, frozen=True):
    """An event. `body` is its JSON as it stands in the log; `base64` what is none, which no import takes."""

    stream: str
    sequence: int
    subject: str
    headers: dict[str, str]
    body: msgspec.Raw | UnsetType = UNSET
    base64: bytes | UnsetType = UNSET


class End(msgspec.Struct, frozen=True):
    """The last line: how many events there are, and the checksum of all lines before this one."""

    events: int
    sha256: str


class Selection(msgspec.Struct, frozen=True):
    """Which aggregates: those of these services (none named: all) that have an event since `since` and before `until`.

    Each with all its history until then, as nothing could be made of a part of it. `aggregate`: a subject or an id.
    """

    since: datetime | None = None
    until: datetime | None = None
    services: tuple[str, ...] = ()
    aggregate: str | None = None

    @property
    def partial(self) -> bool:
        """Whether it is less than everything."""
        return self != Selection()

    def streams(self) -> tuple[str, ...]:
        """The streams that it is about. Raises Invalid."""
        written = {stream.name: stream.writers for stream in STREAMS if stream.name in HISTORY}
        known = {service for writers in written.values() for service in writers}
        if unknown := sorted(set(self.services) - known):
            raise Invalid(f"No service {', '.join(unknown)} tells anything; there are {', '.join(sorted(known))}.")
        if not self.partial:
            return HISTORY
        chosen = [name for name in HISTORY if not self.services or set(written[name]) & set(self.services)]
        if chosen == [ABOUT_PLACES]:
            detail = f"What {ABOUT_PLACES} tells is about places of other streams: export all of it, without options."
            raise Invalid(detail)
        return tuple(name for name in chosen if name != ABOUT_PLACES)

    def means(self, subject: str) -> bool:
        """Whether this is the aggregate that was named, if one was."""
        return self.aggregate is None or self.aggregate in (subject, subject.rpartition(".")[2])


class Exported(msgspec.Struct, frozen=True):
    """How many events and aggregates are in a file, and how many events this code does not understand."""

    events: int
    aggregates: int
    unknown: int


async def export(
    event_log: JetStreamLog,
    write: Callable[[bytes], object],
    selection: Selection,
    *,
    masking: Masking | None = None,
    progress: Progress = untold,
    warn: Warn = lambda _: None,
) -> Exported:
    """Write a selection of the log, all streams in the order of time. It takes the memory of a few pages of each.

    `progress` is told a stream, the sequence reached and the one to reach; `warn` what an import will not take. Raises
    Invalid, NotFound, Unavailable; what is written then has no last line.
    """
    ends = {stream: await event_log.end(stream) for stream in selection.streams()}
    last = {stream: end.sequence for stream, end in ends.items()}
    if until := selection.until:
        last = {stream: await event_log.sequence_before(stream, until) for stream in last}
    wanted = await _wanted(event_log, selection, last)
    head = Head(
        exported_at=now(),
        since=selection.since,
        until=selection.until,
        services=selection.services,
        aggregate=masking.subject(selection.aggregate) if masking and selection.aggregate else selection.aggregate,
        partial=selection.partial,
        masked=masking is not None,
        streams={stream: Covered(end.created, last[stream]) for stream, end in ends.items()},
    )
    checksum, aggregates = sha256(), set[str]()
    events = unknown = 0

    def put(line: object, *, counts: bool = True) -> None:
        encoded = msgspec.json.encode(line) + b"\n"
        if counts:
            checksum.update(encoded)
        write(encoded)

    put(head)
    scans = {stream: event_log.scan(stream, until=last[stream]) for stream in last}
    async with aclosing(merged(scans)) as found:
        async for stored in found:
            if stored.sequence % 1000 == 0 or stored.sequence == last[stored.stream]:
                progress(stored.stream, stored.sequence, last[stored.stream])
            if not wanted(stored.subject):
                continue
            try:
                event = stored.decoded().event
            except UndecodableEvent as error:
                if masking:
                    detail = f"{error}: what is personal in it is not known. Run code that knows it, or do not mask."
                    raise Invalid(detail) from error
                unknown += 1
                if unknown <= WARNINGS:
                    warn(f"{stored.stream}: {error}; it is exported as it is, and no import takes it")
                put(line_of(stored))
            else:
                put(line_of(masking.stored(stored, event) if masking else stored))
            events += 1
            aggregates.add(stored.subject)
    if selection.aggregate and not events:
        raise NotFound(f"There is no aggregate {selection.aggregate} that has events in that time.")
    put(End(events, checksum.hexdigest()), counts=False)
    return Exported(events, len(aggregates), unknown)


async def _wanted(event_log: JetStreamLog, selection: Selection, last: Mapping[str, int]) -> Callable[[str], bool]:
    """Whether a subject is selected: where a time was named, one that has an event since then."""
    if selection.since is None:
        return selection.means
    chosen: set[str] = set()
    for stream, until in last.items():
        after = min(until, await event_log.sequence_before(stream, selection.since))
        async with aclosing(event_log.scan(stream, after, until=until)) as pages:
            async for page in pages:
                chosen |= {stored.subject for stored in page if selection.means(stored.subject)}
    return chosen.__contains__


def line_of(stored: Stored) -> Line:
    """The line of a message. What the server alone has to know (`Nats-...`) is not in it."""
    headers = {name: value for name, value in stored.headers.items() if not name.startswith("Nats-")}
    line = Line(stored.stream, stored.sequence, stored.subject, headers)
    try:
        msgspec.json.decode(stored.body)
        as_it_is = b"\n" not in stored.body
    except msgspec.DecodeError:
        as_it_is = False
    if as_it_is:
        return msgspec.structs.replace(line, body=msgspec.Raw(stored.body))
    return msgspec.structs.replace(line, base64=stored.body)


class Numbered(msgspec.Struct, frozen=True):
    """A line of a file, as the event that it is, with the number of the line."""

    number: int
    line: Line
    event: Recorded

    @property
    def body(self) -> bytes:
        """As it stood in the log."""
        assert isinstance(self.line.body, msgspec.Raw), "what is none was refused"
        return bytes(self.line.body)


class ExportFile:
    """A file of events that is read, once to be checked and as often as it takes after that."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """`file` can be sought. `name`: as people know it."""
        self._file = file
        self.name = name

    def head(self) -> Head:
        """Its first line. Raises Invalid."""
        self._file.seek(0)
        return self._head(self._file.readline(LONGEST_LINE))

    def lines(self) -> Iterator[Numbered]:
        """Its events, in their order. Raises Invalid for what is none, and for a file that is not whole."""
        self._file.seek(0)
        checksum = sha256()
        first = self._file.readline(LONGEST_LINE)
        self._head(first)
        checksum.update(first)
        number = 1
        while encoded := self._file.readline(LONGEST_LINE):
            number += 1
            if encoded.startswith(b'{"events":'):
                self._prove(encoded, number, checksum.hexdigest())
                return
            checksum.update(encoded)
            yield self._numbered(encoded, number)
        self._refuse(number, "it ends here without its last line, so it was cut short; export or copy it again")

    def check(self, progress: Progress = untold) -> dict[str, int]:
        """Look at all of it: how many events of each stream there are. Raises Invalid, with the line.

        `progress` is told a stream, the sequence reached and the one to reach.
        """
        head = self.head()
        counts: dict[str, int] = {}
        reached: dict[str, int] = {}
        versions: dict[str, int] = {}
        for each in self.lines():
            line = each.line
            if line.stream not in head.streams:
                self._refuse(each.number, f"its first line names no stream {line.stream}")
            before = reached.get(line.stream, 0)
            if line.sequence <= before or (not head.partial and line.sequence != before + 1):
                mend = "" if head.partial else f" and {before + 1} is missing"
                told = f"{line.stream} {line.sequence} comes after {before}{mend}; export or copy it again"
                self._refuse(each.number, told)
            reached[line.stream] = line.sequence
            counts[line.stream] = counts.get(line.stream, 0) + 1
            self._check_version(each, versions)
            if line.sequence % 1000 == 0:
                progress(line.stream, line.sequence, head.streams[line.stream].last)
        for stream, covered in head.streams.items():
            if not head.partial and reached.get(stream, 0) != covered.last:
                ends = reached.get(stream, 0)
                raise Invalid(f"{self.name}: {stream} ends at {ends}, not at {covered.last}; export or copy it again.")
        return counts

    def _check_version(self, each: Numbered, versions: dict[str, int]) -> None:
        subject, version = each.line.subject, each.event.event.version
        before = versions.get(subject)
        # What can happen only once was told by a Publisher, and has no version.
        if version == 0 and before is None:
            pass
        elif version == 0 or before == 0:
            self._refuse(each.number, f"aggregate {subject} has an event that cannot have others beside it")
        elif before is None and version != 1:
            self._refuse(each.number, f"aggregate {subject} begins at version {version}: export it whole")
        elif version != (before or 0) + 1:
            what = f"aggregate {subject} has version {version} after {before}"
            self._refuse(each.number, f"{what}: export or copy it again")
        versions[subject] = version

    def _head(self, encoded: bytes) -> Head:
        try:
            said = msgspec.json.decode(encoded)
            version = said["format"] if said["boxoffice"] == "events" else None
        except (msgspec.DecodeError, KeyError, TypeError):
            version = None
        if not isinstance(version, int):
            raise Invalid(f"{self.name} is no file that `boxoffice events export` wrote: its first line would say so.")
        if version > FORMAT:
            newer = f"{self.name} was written by newer code (format {version}; this code knows {FORMAT})"
            raise Invalid(f"{newer}: import it with that code.")
        try:
            return msgspec.json.decode(encoded, type=Head)
        except msgspec.MsgspecError as error:
            self._refuse(1, f"{error}; export or copy it again")

    def _numbered(self, encoded: bytes, number: int) -> Numbered:
        try:
            line = msgspec.json.decode(encoded, type=Line)
        except msgspec.MsgspecError as error:
            if not encoded.endswith(b"\n"):
                self._refuse(number, "it ends in the middle of this line, so it was cut short; export or copy it again")
            self._refuse(number, f"{error}; export or copy it again")
        if not isinstance(line.body, msgspec.Raw) or line.base64 is not UNSET:
            self._refuse(number, f"{line.subject}: its body is no event")
        if wrong := misplaced(line):
            self._refuse(number, wrong)
        try:
            event = recorded(line.subject, line.sequence, line.headers, bytes(line.body))
        except UndecodableEvent as error:
            self._refuse(number, f"{error}; import it with the code that wrote it")
        if wrong := contradiction(line, event):
            self._refuse(number, wrong)
        return Numbered(number, line, event)

    def _prove(self, encoded: bytes, number: int, checksum: str) -> None:
        try:
            end = msgspec.json.decode(encoded, type=End)
        except msgspec.MsgspecError:
            self._refuse(number, "its last line is broken, so it was cut short; export or copy it again")
        if self._file.readline(LONGEST_LINE):
            self._refuse(number + 1, "there is something after its last line; export or copy it again")
        if end.events != number - 2:
            self._refuse(number, f"it has {number - 2} events where {end.events} were written; copy it again")
        if end.sha256 != checksum:
            self._refuse(number, "its checksum is another: it was changed or damaged; export or copy it again")

    def _refuse(self, number: int, why: str) -> NoReturn:
        raise Invalid(f"{self.name}, line {number}: {why}.")


def misplaced(line: Line) -> str:
    """Why a line cannot be where it says that it is; empty if it can."""
    subjects: Sequence[str] = next((stream.subjects for stream in STREAMS if stream.name == line.stream), ())
    if line.stream not in HISTORY:
        return f"{line.stream} is no stream of history"
    if not any(matches(line.subject, subject) for subject in subjects):
        return f"{line.subject!r} is no subject of {line.stream}"
    for name, value in line.headers.items():
        if name.lower().startswith("nats-") or not (name.isascii() and name.isprintable()) or not value.isprintable():
            return f"{line.subject}: it may not have the header {name!r}"
    return ""


def contradiction(line: Line, event: Recorded) -> str:
    """In what the envelope of an event is not that of this event; empty if it is."""
    if type(event.event) not in events_of(line.stream.lower()):
        return f"{line.subject}: {line.headers['ce-type']} is no event of {line.stream}"
    if line.headers.get("ce-sequence") != str(event.event.version):
        told = line.headers.get("ce-sequence")
        return f"{line.subject}: its header says version {told}, its body {event.event.version}"
    for name in ("ce-id", "ce-time", "correlation-id", "causation-id"):
        if not line.headers.get(name):
            return f"{line.subject}: it has no header {name}"
    try:
        if event.time.tzinfo is None:
            return f"{line.subject}: its ce-time has no offset"
    except ValueError:
        return f"{line.subject}: its ce-time is no time"
    return ""


def matches(subject: str, pattern: str) -> bool:
    """Whether a literal subject is one of a pattern's."""
    tokens, wanted = subject.split("."), pattern.split(".")
    if not all(token and token.isascii() and token.isprintable() and not set(token) & set(" *>") for token in tokens):
        return False
    if wanted[-1] == ">":
        wanted = wanted[:-1] + ["*"] * max(1, len(tokens) - len(wanted) + 1)
    return len(tokens) == len(wanted) and all(w in ("*", token) for w, token in zip(wanted, tokens, strict=True))
