"""HTTP -> what was given up on, and what is done about it, for operators."""

from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import msgspec
from litestar import Controller, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import Meta

from common.auth import RequiresUser, UserRequest
from common.clock import now
from common.errors import Conflict, Invalid, NotFound, Unavailable
from common.event_log import JetStreamLog, Stored
from common.events import (
    EVENTS,
    UPCASTS,
    DeadLetterDropped,
    DeadLetterEdited,
    EventRedelivered,
    RepairEvent,
    UndecodableEvent,
    decode,
)
from common.limits import Limited
from common.problems import problems
from common.requests import Asks, understood
from common.requests.redelivery import ANSWERED_WITHIN, Redelivery, endpoint_of, service_of
from common.topology import HISTORY
from services.history.domain import (
    DropLetter,
    EditLetter,
    RecordRedelivery,
    Repair,
    Repairs,
    Standing,
    letter_id_of,
    redelivery_id_of,
)
from services.history.following import shown
from services.history.letters import DEAD, Letter, Letters, Wanted

Listening = Annotated[
    str | None, QueryParameter(max_length=100, description="The listener that gave up, by its durable consumer")
]
Failing = Annotated[str | None, QueryParameter(name="error", max_length=200, description="A part of the error")]
Standings = Annotated[
    Standing | None, QueryParameter(name="state", description="open, done or dropped; by default any")
]

UP_TO = 2**63 - 1
"""The last sequence of a stream that there can be."""


class LetterView(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter: an event that a listener gave up on after `attempts`, and how it stands.

    `stream`, `sequence`, `subject` and `type` are those of the event. `edited`: it has a corrected payload;
    `retries`: how often it was heard again since, and `retry_error` why it failed the last time.
    """

    number: int
    listener: str
    error: str
    attempts: int
    stream: str
    sequence: int
    subject: str
    type: str
    event_id: str
    correlation_id: str
    appended_at: datetime
    died_at: datetime
    state: Standing
    edited: bool
    retries: int
    retry_error: str | None

    @classmethod
    def of(cls, letter: Letter, repair: Repair, **more: Any) -> Self:
        told = {name: getattr(letter, name) for name in Letter.__struct_fields__ if name != "kind"}
        return cls(
            **told,
            state=repair.standing,
            edited=repair.correction is not None,
            retries=repair.retries,
            retry_error=repair.error,
            **more,
        )


class Action(msgspec.Struct, frozen=True):
    """What an operator did about a dead letter. `error`: why it failed; `payload`: what it was corrected to."""

    what: Literal["redelivered", "edited", "dropped"]
    by: str
    at: datetime
    error: str | None = None
    payload: Any = None

    @classmethod
    def of(cls, event: RepairEvent) -> "Action":
        match event:
            case EventRedelivered(by=by, at=at, error=error):
                return cls("redelivered", by, at, error)
            case DeadLetterEdited(by=by, at=at, body=body):
                return cls("edited", by, at, payload=shown(body.encode()))
            case DeadLetterDropped(by=by, at=at):
                return cls("dropped", by, at)


class LetterDetail(LetterView, frozen=True, kw_only=True):
    """A dead letter with its payload: JSON, or the text that it is where it is none. `headers`: of the event.

    `correction`: the payload that takes its place when it is heard again, if it was edited.
    """

    headers: dict[str, str]
    payload: Any
    correction: Any
    actions: list[Action]


class LetterPage(msgspec.Struct, frozen=True):
    """Some dead letters, newest first. `next_cursor` is null on the last page."""

    items: list[LetterView]
    next_cursor: str | None


class GroupView(msgspec.Struct, frozen=True):
    """Dead letters of one listener with one error; a * stands for the ids in it. `newest`: the number of the last."""

    listener: str
    error: str
    count: int
    first: datetime
    last: datetime
    newest: int


class WantedRedelivery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which event a listener is to hear once more, by its place."""

    listener: Annotated[str, Meta(min_length=1, max_length=100, examples=["orders-cancel-expired"])]
    stream: Annotated[str, Meta(min_length=1, max_length=100, examples=["EXPIRATION"])]
    sequence: Annotated[int, Meta(ge=1, le=UP_TO, examples=[1])]


class RedeliveryView(msgspec.Struct, frozen=True):
    """An event that a listener has heard once more, and has done its deed for."""

    listener: str
    stream: str
    sequence: int
    subject: str
    by: str
    at: datetime


class RepairDesk(msgspec.Struct, frozen=True):
    """What these doors need."""

    letters: Letters
    repairs: Repairs
    event_log: JetStreamLog
    requests: Asks

    async def detail(self, number: int) -> LetterDetail:
        """A letter with all there is to know. Raises NotFound, Unavailable."""
        letter, stored = self.letters.find(number), await self.stored(number)
        actions = await self.actions(number)
        correction = corrected(actions)
        return LetterDetail.of(
            letter,
            self.letters.repair(number),
            headers=event_headers(stored),
            payload=shown(stored.body),
            correction=None if correction is None else shown(correction),
            actions=[Action.of(event) for event in actions],
        )

    async def stored(self, number: int) -> Stored:
        """The letter as it is kept. Raises NotFound, Unavailable."""
        if (stored := await self.event_log.stored(DEAD, number)) is None:
            raise NotFound(f"There is no dead letter {number}.")
        return stored

    async def actions(self, number: int) -> list[RepairEvent]:
        """What was done about a letter, in order."""
        subject = self.repairs.subject(self.repair_id(number))
        return [recorded.event for recorded in await self.event_log.read(subject)]  # type: ignore[misc]  # it holds no others

    def repair_id(self, number: int) -> UUID:
        return letter_id_of(self.letters.log, number)

    async def retry(self, number: int, by: str) -> LetterView:
        """Have the letter's listener hear it once more. Raises as `redeliver`, Conflict for one that is over."""
        letter, stored = self.letters.find(number), await self.stored(number)
        (await self.repairs.load(self.repair_id(number), fresh=True)).state.require_open(number)
        body = corrected(await self.actions(number))
        asked = Redelivery(
            letter.listener,
            letter.stream,
            letter.subject,
            letter.sequence,
            event_headers(stored),
            stored.body if body is None else body,
        )
        return LetterView.of(letter, await self.redeliver(asked, self.repair_id(number), number, by, now()))

    async def once_more(self, wanted: WantedRedelivery, by: str) -> RedeliveryView:
        """Have a listener hear any event of the past. Raises as `redeliver`, NotFound for what is not there."""
        service_of(wanted.listener)
        stored = await self.event_log.stored(wanted.stream, wanted.sequence) if wanted.stream in HISTORY else None
        if stored is None:
            raise NotFound(f"There is no event {wanted.sequence} in a stream {wanted.stream}.")
        asked = Redelivery(
            wanted.listener, stored.stream, stored.subject, stored.sequence, event_headers(stored), stored.body
        )
        log = (await self.event_log.end(wanted.stream)).log
        repair_id = redelivery_id_of(log, wanted.stream, wanted.sequence, wanted.listener)
        at = now()
        await self.redeliver(asked, repair_id, None, by, at)
        return RedeliveryView(wanted.listener, wanted.stream, wanted.sequence, stored.subject, by, at)

    async def redeliver(self, asked: Redelivery, repair_id: UUID, letter: int | None, by: str, at: datetime) -> Repair:
        """Have it heard, and record that. Raises Conflict if it failed, which is recorded, too.

        Raises Invalid or NotFound for what its listener cannot hear, and Unavailable where nobody knows what became of
        it: neither is recorded.
        """
        endpoint = endpoint_of(service_of(asked.listener))
        try:
            answer = await self.requests.ask(endpoint, asked, within=ANSWERED_WITHIN)
        except Unavailable as error:
            detail = f"It is not known whether {asked.listener} has done it: {error.detail} To retry does no harm."
            raise Unavailable(detail) from error
        record = RecordRedelivery(asked.listener, asked.stream, asked.sequence, letter, answer.error, by, at)
        try:
            handled = await self.repairs.handle(repair_id, record)
        except Unavailable as error:
            done = f"failed ({answer.error})" if answer.error else "has done it"
            detail = f"{asked.listener} {done}, but that could not be recorded: {error.detail}"
            raise Unavailable(detail) from error
        await self.letters.passed(handled.sequence)
        if answer.error:
            raise Conflict(f"{asked.listener} failed: {answer.error}", error=answer.error)
        return handled.state

    async def edit(self, number: int, data: Mapping[str, Any], by: str) -> LetterView:
        """Correct what a letter says; the letter stays as it was. Raises Invalid, NotFound, Conflict, Unavailable."""
        letter, stored = self.letters.find(number), await self.stored(number)
        body = correction_of(letter.type, data, shown(stored.body))
        return await self._change(letter, EditLetter(number, body, by, now()))

    async def drop(self, number: int, by: str) -> LetterView:
        """Leave a letter as it is, for good. Raises NotFound, Conflict, Unavailable."""
        return await self._change(self.letters.find(number), DropLetter(number, by, now()))

    async def _change(self, letter: Letter, command: EditLetter | DropLetter) -> LetterView:
        handled = await self.repairs.handle(self.repair_id(letter.number), command)
        await self.letters.passed(handled.sequence)
        return LetterView.of(letter, handled.state)


def event_headers(stored: Stored) -> dict[str, str]:
    """The headers that the event had, without those of its dead letter and of the server."""
    return {name: value for name, value in stored.headers.items() if not name.startswith(("dead-", "Nats-"))}


def corrected(actions: list[RepairEvent]) -> bytes | None:
    """The body that a letter was last edited to."""
    edits = [action.body.encode() for action in actions if isinstance(action, DeadLetterEdited)]
    return edits[-1] if edits else None


def correction_of(tag: str, data: Mapping[str, Any], before: Any) -> str:
    """A corrected body of an event of this type, as JSON. Raises Invalid, and says where it is none.

    Names that neither the event has nor what it was `before` are refused: nobody would read them.
    """
    body = msgspec.json.encode(data)
    if tag not in EVENTS or tag in UPCASTS:
        try:
            decode(tag, body)
        except UndecodableEvent as error:
            raise Invalid(f"body: {error}", field="body") from error
    else:
        understood(body, EVENTS[tag], "body")
        names = ["type", *EVENTS[tag].__struct_fields__]
        known = {*names, *(before if isinstance(before, dict) else ())}
        if unknown := next((name for name in data if name not in known), None):
            raise Invalid(f"{unknown}: Unknown; there are {', '.join(names)}", field=unknown)
    return body.decode()


FOR_OPERATORS = RequiresUser("events", "operator")


class DeadLetterController(Controller):
    """What was given up on, for operators."""

    path = "/api/events/dead"
    tags = ("events",)
    middleware = (FOR_OPERATORS, Limited("changes"))

    @get("/groups", responses=problems(400, 503))
    async def groups(
        self,
        repair_desk: NamedDependency[RepairDesk],
        listener: Listening = None,
        failing: Failing = None,
        standing: Standings = None,
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    ) -> list[GroupView]:
        """Dead letters by listener and error, those with the newest letter first."""
        groups: dict[tuple[str, str], GroupView] = {}
        for letter in repair_desk.letters.newest_first(Wanted(listener, failing, standing)):
            alike, died = (letter.listener, letter.kind), letter.died_at
            group = groups.get(alike) or GroupView(*alike, 0, died, died, letter.number)
            groups[alike] = msgspec.structs.replace(group, count=group.count + 1, first=died)
        return [*islice(groups.values(), limit)]

    @get("/", responses=problems(400, 503))
    async def list(
        self,
        repair_desk: NamedDependency[RepairDesk],
        listener: Listening = None,
        failing: Failing = None,
        standing: Standings = None,
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
        cursor: Annotated[
            str | None,
            QueryParameter(
                max_length=18,
                pattern="^[0-9]+$",
                description="A `next_cursor` that a list gave; leave it out to begin at the start",
            ),
        ] = None,
    ) -> LetterPage:
        """Dead letters, newest first."""
        letters = repair_desk.letters
        found = letters.newest_first(Wanted(listener, failing, standing), int(cursor) if cursor else None)
        items = [LetterView.of(letter, letters.repair(letter.number)) for letter in islice(found, limit)]
        return LetterPage(items, str(items[-1].number) if next(found, None) else None)

    @get("/{letter:str}", responses=problems(400, 404, 503))
    async def read(self, letter: FromPath[int], repair_desk: NamedDependency[RepairDesk]) -> LetterDetail:
        """A dead letter, with its payload and what was done about it."""
        return await repair_desk.detail(letter)

    @post("/{letter:str}/retry", status_code=200, responses=problems(400, 404, 409, 422, 503))
    async def retry(
        self, letter: FromPath[int], request: UserRequest, repair_desk: NamedDependency[RepairDesk]
    ) -> LetterView:
        """Have its listener hear it once more, as it was or as it was corrected.

        With 409 it failed, and says why. With 503 nobody knows what became of it; to retry does no harm.
        """
        return await repair_desk.retry(letter, request.user.id)

    @put("/{letter:str}/body", responses=problems(400, 404, 409, 413, 415, 422, 503))
    async def edit(
        self,
        letter: FromPath[int],
        data: JSONBody[dict[str, Any]],
        request: UserRequest,
        repair_desk: NamedDependency[RepairDesk],
    ) -> LetterView:
        """Correct its payload: a whole event of its type. What it was stays beside it."""
        return await repair_desk.edit(letter, data, request.user.id)

    @post("/{letter:str}/drop", status_code=200, responses=problems(400, 404, 409, 503))
    async def drop(
        self, letter: FromPath[int], request: UserRequest, repair_desk: NamedDependency[RepairDesk]
    ) -> LetterView:
        """Want nothing more done about it. It stays in the log."""
        return await repair_desk.drop(letter, request.user.id)


class RedeliveryController(Controller):
    """Events of the past, for one listener."""

    path = "/api/events/redeliveries"
    tags = ("events",)
    middleware = (FOR_OPERATORS, Limited("changes"))

    @post("/", status_code=200, responses=problems(400, 404, 409, 413, 415, 422, 503))
    async def redeliver(
        self, data: JSONBody[WantedRedelivery], request: UserRequest, repair_desk: NamedDependency[RepairDesk]
    ) -> RedeliveryView:
        """Have one listener hear any event of the past once more; the answer comes when it has done so.

        With 409 it failed, and says why. With 503 nobody knows what became of it; to ask again does no harm.
        """
        return await repair_desk.once_more(data, request.user.id)
