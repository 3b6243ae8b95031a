"""What a file of events has to be: each thing that can be wrong with one is told, with its line."""

import io
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
import pytest

from common.errors import Invalid
from common.event_log import Draft
from common.events import (
    Event,
    ExpirationCompleted,
    NotificationRaised,
    NotificationsAcknowledged,
    NotificationsRead,
    OrderCancelled,
    TicketCreated,
    TicketDetails,
    TicketWithdrawn,
    encode,
)
from common.exports import End, ExportFile, Selection, matches
from common.imports import placed
from tests.facts import AT

TICKET, OTHER = UUID(int=7), UUID(int=8)
DETAILS = TicketDetails("Opening night", 2500, "EUR", 100, 10)
CREATED = TicketCreated(TICKET, "sam", DETAILS, AT, version=1)
WITHDRAWN = TicketWithdrawn(TICKET, "sam", AT, version=2)
EXPIRED = ExpirationCompleted(OTHER, TICKET, AT, AT)

Document = dict[str, Any]


def line(stream: str, sequence: int, event: Event, aggregate: UUID | str = TICKET) -> Document:
    """A line as it is exported."""
    subject = f"{stream.lower()}.{aggregate}"
    headers = Draft.of(event).headers("/" + subject)
    del headers["Nats-Msg-Id"]
    body = msgspec.json.decode(encode(event))
    return {"stream": stream, "sequence": sequence, "subject": subject, "headers": headers, "body": body}


def head(**more: object) -> Document:
    streams = {"TICKETS": {"created": AT, "last": 2}, "EXPIRATION": {"created": AT, "last": 1}}
    return {"boxoffice": "events", "format": 1, "exported_at": AT, "streams": streams} | more


def document() -> list[Document]:
    """A whole file: its head and three events."""
    created, withdrawn = line("TICKETS", 1, CREATED), line("TICKETS", 2, WITHDRAWN)
    return [head(), created, line("EXPIRATION", 1, EXPIRED, OTHER), withdrawn]


def sealed(lines: Sequence[Document]) -> bytes:
    """These lines, with the last one that proves them."""
    content = b"".join(msgspec.json.encode(each) + b"\n" for each in lines)
    return content + msgspec.json.encode(End(len(lines) - 1, sha256(content).hexdigest())) + b"\n"


def opened(content: bytes) -> ExportFile:
    return ExportFile(io.BytesIO(content), "sale.jsonl")


def test_a_whole_file_is_as_it_was_written() -> None:
    file = opened(sealed(document()))
    assert file.check() == {"TICKETS": 2, "EXPIRATION": 1}
    assert [each.event.event for each in file.lines()] == [CREATED, EXPIRED, WITHDRAWN]
    assert [(each.stream, each.sequence) for each in placed(file)] == [
        ("TICKETS", 1),
        ("EXPIRATION", 1),
        ("TICKETS", 2),
    ]


def changed(number: int, **values: object) -> Callable[[list[Document]], None]:
    """Line `number` (from 1) says something else; a dot leads inside."""

    def change(lines: list[Document]) -> None:
        for path, value in values.items():
            *inside, name = path.split("__")
            place = lines[number - 1]
            for each in inside:
                place = place[each]
            place[name.replace("_", "-") if inside == ["headers"] else name] = value

    return change


def gone(number: int) -> Callable[[list[Document]], None]:
    return lambda lines: lines.__delitem__(number - 1)


def repeated(number: int) -> Callable[[list[Document]], None]:
    return lambda lines: lines.insert(number, lines[number - 1])


def partial(change: Callable[[list[Document]], None]) -> Callable[[list[Document]], None]:
    def both(lines: list[Document]) -> None:
        lines[0]["partial"] = True
        change(lines)

    return both


def without(number: int, header: str) -> Callable[[list[Document]], None]:
    return lambda lines: lines[number - 1]["headers"].__delitem__(header)


WRONG = {
    "unknown-type": (
        changed(3, headers__ce_type="expiration_postponed"),
        "line 3: .* no event type 'expiration_postponed' in this code; import it with the code that wrote it",
    ),
    "future-shape": (
        changed(2, body__seller_id={"id": "sam"}),
        "line 2: .*ticket_created: Expected `str`, got `obj",
    ),
    "other-type": (changed(2, headers__ce_type="ticket_withdrawn"), "line 2: .*ticket_withdrawn: Invalid value"),
    "foreign-type": (
        changed(3, headers=line("TICKETS", 1, CREATED)["headers"], body=line("TICKETS", 1, CREATED)["body"]),
        "line 3: .*ticket_created is no event of EXPIRATION",
    ),
    "no-type": (without(2, "ce-type"), "line 2: .* has no ce-type header"),
    "no-id": (without(2, "ce-id"), "line 2: .*no header ce-id"),
    "no-cause": (without(2, "causation-id"), "line 2: .*no header causation-id"),
    "time": (changed(2, headers__ce_time="yesterday"), "line 2: .*ce-time is no time"),
    "local-time": (changed(2, headers__ce_time="2026-11-22T12:00:00"), "line 2: .*ce-time has no offset"),
    "version": (changed(4, headers__ce_sequence="3"), "line 4: .*header says version 3, its body 2"),
    "beginning": (
        partial(gone(2)),
        f"line 3: aggregate tickets.{TICKET} begins at version 2: export it whole",
    ),
    "gap": (
        partial(changed(4, body__version=4, headers__ce_sequence="4")),
        f"line 4: aggregate tickets.{TICKET} has version 4 after 1",
    ),
    "twice": (repeated(2), "line 3: TICKETS 1 comes after 1"),
    "once-twice": (
        lambda lines: lines.insert(3, lines[2] | {"sequence": 2}),
        f"line 4: aggregate expiration.{OTHER} has an event that cannot have others",
    ),
    "missing": (gone(2), "line 3: TICKETS 2 comes after 0 and 1 is missing"),
    "missing-end": (gone(4), "TICKETS ends at 1, not at 2"),
    "order": (lambda lines: lines.reverse() or lines.insert(0, lines.pop()), "line 2: TICKETS 2 comes after 0"),
    "stream": (changed(2, stream="ORDERS"), "line 2: 'tickets.*' is no subject of ORDERS"),
    "no-history": (changed(2, stream="REVOKED"), "line 2: REVOKED is no stream of history"),
    "not-in-head": (
        lambda lines: lines.append(line("ORDERS", 1, OrderCancelled(OTHER, TICKET, "ada", 1, "buyer", AT, version=1))),
        "line 5: its first line names no stream ORDERS",
    ),
    "wild-subject": (changed(2, subject="tickets.*"), "line 2: 'tickets.*' is no subject of TICKETS"),
    "steering": (changed(2, headers={"Nats-Rollup": "all"}), "line 2: .*may not have the header 'Nats-Rollup'"),
    "no-body": (lambda lines: lines[1].__delitem__("body"), "line 2: .*its body is no event"),
    "bytes": (changed(2, base64="AAAA"), "line 2: .*its body is no event"),
    "shape": (changed(2, sequence="one"), "line 2: Expected `int`, got `str`"),
    "newer-format": (
        changed(1, format=2),
        r"newer code \(format 2; this code knows 1\): import it with",
    ),
    "other-file": (changed(1, boxoffice="backup"), "is no file that `boxoffice events export` wrote"),
    "head": (changed(1, streams=None), "line 1: Expected `object`, got `null`"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_an_event_is_told_with_its_line(wrong: str) -> None:
    spoil, told = WRONG[wrong]
    lines = document()
    spoil(lines)
    with pytest.raises(Invalid, match=told):
        opened(sealed(lines)).check()


def test_a_file_that_was_cut_short_anywhere_is_refused() -> None:
    content = sealed(document())
    for length in range(len(content)):
        if length == len(content) - 1:
            continue  # nothing but the end of its last line is missing
        with pytest.raises(Invalid, match=r"sale\.jsonl"):
            opened(content[:length]).check()


@pytest.mark.parametrize("place", ["end of a line", "middle of a line", "last line"])
def test_where_a_file_was_cut_short_is_told(place: str) -> None:
    lines = sealed(document()).splitlines(keepends=True)
    cut = {
        "end of a line": lines[:3],
        "middle of a line": [*lines[:3], lines[3][:40]],
        "last line": [*lines[:4], b'{"ev'],
    }
    number = {"end of a line": 3, "middle of a line": 4, "last line": 5}[place]
    with pytest.raises(Invalid, match=f"line {number}: it ends .*so it was cut short"):
        opened(b"".join(cut[place])).check()


def test_a_change_of_any_byte_is_noticed() -> None:
    content = sealed(document())
    for place in range(len(content) - 1):
        spoiled = bytearray(content)
        spoiled[place] ^= 1
        with pytest.raises(Invalid):
            opened(bytes(spoiled)).check()


def test_what_is_after_the_last_line_is_refused() -> None:
    with pytest.raises(Invalid, match="line 6: there is something after its last line"):
        opened(sealed(document()) + b"{}\n").check()


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08\x00", b"[]\n", b"null\n", b"id,name\n"], ids=repr)
def test_what_is_no_file_of_events_is_refused(content: bytes) -> None:
    with pytest.raises(Invalid, match=r"sale\.jsonl is no file that `boxoffice events export` wrote"):
        opened(content).check()


def test_a_body_stays_as_it_stood_in_the_log() -> None:
    lines = document()
    today = encode(EXPIRED)
    as_it_stood = today.replace(b'","', b'" ,  "').replace(b"}", b',"since_next_year":1.50}')
    content = b"".join(msgspec.json.encode(each) + b"\n" for each in lines).replace(today, as_it_stood)
    content += msgspec.json.encode(End(3, sha256(content).hexdigest())) + b"\n"
    assert [each.message.body for each in placed(opened(content)) if each.stream == "EXPIRATION"] == [as_it_stood]


def test_cursors_of_a_part_of_a_log_follow_what_they_named() -> None:
    raised = [NotificationRaised(UUID(int=n), "ada", "order.created", TICKET, "", {}, AT, version=n) for n in (1, 2)]
    events: list[tuple[int, Event]] = [
        (10, raised[0]),
        (20, raised[1]),
        (30, NotificationsAcknowledged("ada", 15, AT, version=3)),
        (31, NotificationsRead("ada", 20, AT, version=4)),
    ]
    lines = [line("NOTIFICATIONS", sequence, event) for sequence, event in events]
    streams = {"NOTIFICATIONS": {"created": AT, "last": 40}}
    file = opened(sealed([head(partial=True, streams=streams), *lines]))
    assert file.check() == {"NOTIFICATIONS": 4}
    moved = [msgspec.json.decode(each.message.body).get("cursor") for each in placed(file)]
    assert moved == [None, None, 1, 2]
    assert [each.sequence for each in placed(file)] == [1, 2, 3, 4]


def test_a_service_that_tells_nothing_is_told() -> None:
    with pytest.raises(Invalid, match="No service web tells anything; there are batch, expiration, history"):
        Selection(services=("web",)).streams()
    with pytest.raises(Invalid, match="REPAIRS tells is about places of other streams"):
        Selection(services=("history",)).streams()
    assert Selection(services=("notification", "orders")).streams() == ("ORDERS", "NOTIFICATIONS")
    assert "REPAIRS" in Selection().streams()
    assert "REPAIRS" not in Selection(aggregate="x").streams()


@pytest.mark.parametrize(
    ("subject", "pattern", "does"),
    [
        ("orders.1", "orders.*", True),
        ("orders.1.2", "orders.*", False),
        ("batch.1", "batch.>", True),
        ("batch.high.1", "batch.>", True),
        ("batch", "batch.>", False),
        ("batch.", "batch.>", False),
        ("batch.a b", "batch.>", False),
        ("batch.>", "batch.>", False),
    ],
)
def test_subjects_are_of_their_stream(subject: str, pattern: str, does: bool) -> None:
    assert matches(subject, pattern) is does
