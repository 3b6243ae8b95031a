"""Single operations, from HTTP or from another service: each a piece of work of its own, collected with others."""

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID, uuid5

import asyncpg
import msgspec

from common.clock import new_id, now
from common.errors import Invalid, NotFound
from common.events import Priority
from services.batch import read_model
from services.batch.domain import (
    PRIORITIES,
    AddOperations,
    OperationRequests,
    Piece,
    RequestOperation,
    Works,
    operation_id_of,
)
from services.batch.intake import VisibleBatches
from services.batch.kinds import Kind, known
from services.batch.read_model import OperationView
from services.batch.upload import operations_of


class Singles(msgspec.Struct, frozen=True):
    """Makes single operations, and tells what became of them."""

    requests: OperationRequests
    works: Mapping[Priority, Works]
    batches: VisibleBatches
    kinds: Mapping[str, Kind[msgspec.Struct]]
    pool: asyncpg.Pool

    async def create(
        self,
        request_id: UUID | None,
        user_id: str,
        kind: str,
        payload: msgspec.Raw,
        priority: Priority,
        run_at: datetime | None,
    ) -> OperationView:
        """Have an operation executed; a user's same request is the same one, and None one of its own.

        Raises Invalid, also for a request that was another operation; NotFound, Unavailable.
        """
        operations, refused = operations_of([payload], known(self.kinds, kind).operation)
        if refused:
            field = f"payload.{refused[0].column}" if refused[0].column else "payload"
            raise Invalid(f"{field}: {refused[0].reason}", field=field)
        work_id = uuid5(request_id or new_id(), user_id)
        if request_id:
            await self.requests.handle(work_id, RequestOperation(work_id, user_id, priority, now()), new=True)
        command = AddOperations(work_id, None, 0, kind, user_id, operations, now(), True, run_at)
        handled = await self.works[priority].handle(work_id, command, new=True)
        return view_of(operation_id_of(work_id, 1), handled.state)

    async def get(self, operation_id: UUID, user_id: str) -> OperationView:
        """What became of an operation of this user, also one of a batch. Raises NotFound, Unavailable."""
        work_id = UUID(int=max(operation_id.int - 1, 0))
        for priority in PRIORITIES:
            piece = (await self.works[priority].load(work_id, fresh=True)).state
            if piece.id and piece.batch_id is None and piece.user_id == user_id:
                return view_of(operation_id, piece)
        try:
            return await read_model.operation(self.pool, operation_id, user_id)
        except NotFound:
            return await self.batches.find(lambda: read_model.operation(self.pool, operation_id, user_id))


def view_of(operation_id: UUID, piece: Piece) -> OperationView:
    """The only operation of a piece."""
    result = piece.result(1)
    if result is None:
        return OperationView(operation_id, None, 1, piece.kind, "pending")
    return OperationView(operation_id, None, 1, piece.kind, result.outcome, result.error, result.output, piece.ended_at)
