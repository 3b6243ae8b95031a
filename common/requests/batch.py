"""What the batch service can be asked: one small operation to be collected with others, and what became of it."""

from datetime import datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from common.auth import UserId
from common.clock import Moment, in_utc, new_id
from common.errors import Invalid
from common.events import Outcome, Priority
from common.requests import Asks, Endpoint

KindName = Annotated[str, Meta(min_length=1, max_length=100, examples=["records.insert"])]
AHEAD = timedelta(days=366)
"""How far ahead of its time something may be handed in."""


class NewOperation(msgspec.Struct, frozen=True, kw_only=True):
    """An operation to be. The same `request_id` again is the same operation, or refused.

    `user_id`: who wants it, and whose rights count; `run_at`: not before.
    """

    request_id: UUID
    user_id: UserId
    kind: KindName
    payload: msgspec.Raw
    priority: Priority = "normal"
    run_at: Moment | None = None


class WantedOperation(msgspec.Struct, frozen=True):
    """Which operation of a user's is asked about."""

    id: UUID
    user_id: UserId


class OperationState(msgspec.Struct, frozen=True):
    """An operation, and what became of it so far: why it failed, or what its kind has to show.

    `error` of one that is pending is why it is to be tried again.
    """

    id: UUID
    kind: str
    status: Outcome | Literal["pending"]
    error: str | None = None
    output: str | None = None


def start_of(run_at: datetime | None, at: datetime) -> datetime | None:
    """A `run_at` that was sent at this time, as it is kept. Raises Invalid for one that is too far ahead."""
    if run_at is None:
        return None
    if (start := in_utc("run_at", run_at)) > at + AHEAD:
        detail = f"run_at: Expected a time in the next {AHEAD.days} days, up to {at + AHEAD:%Y-%m-%dT%H:%M:%SZ}"
        raise Invalid(detail, field="run_at", got=run_at.isoformat())
    return start


CREATE_OPERATION = Endpoint("batch", "create_operation", NewOperation, OperationState)
"""Raises Invalid for a payload that is none of its kind, a `run_at` that is too far ahead (`start_of`) and a
`request_id` that was used for another, NotFound for an unknown kind."""

GET_OPERATION = Endpoint("batch", "get_operation", WantedOperation, OperationState)
"""Raises NotFound, also for an operation of somebody else's."""


class Operations:
    """Single operations for the batch service, from any other. Both raise what their endpoint does, or Unavailable."""

    def __init__(self, requests: Asks) -> None:
        self._requests = requests

    async def create(
        self,
        kind: str,
        payload: msgspec.Struct,
        *,
        user_id: str,
        request_id: UUID | None = None,
        priority: Priority = "normal",
        run_at: datetime | None = None,
    ) -> OperationState:
        """Hand in an operation. Who may have to ask again gives the same `request_id`."""
        new = NewOperation(
            request_id=request_id or new_id(),
            user_id=user_id,
            kind=kind,
            payload=msgspec.Raw(msgspec.json.encode(payload)),
            priority=priority,
            run_at=run_at,
        )
        return await self._requests.ask(CREATE_OPERATION, new)

    async def get(self, operation_id: UUID, *, user_id: str) -> OperationState:
        """What became of an operation."""
        return await self._requests.ask(GET_OPERATION, WantedOperation(operation_id, user_id))
