"""Single operations, from HTTP or from another service: each a piece of work of its own, collected with others."""

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID, uuid5

import asyncpg
import msgspec

from common.clock import now
from common.errors import Invalid, NotFound
from common.events import Priority
from services.batch import read_model
from services.batch.domain import PRIORITIES, AddOperations, Works, operation_id_of
from services.batch.intake import VisibleBatches
from services.batch.kinds import Kind, known
from services.batch.read_model import OperationView
from services.batch.upload import operations_of


class Singles(msgspec.Struct, frozen=True):
    """Makes single operations, and tells what became of them."""

    works: Mapping[Priority, Works]
    batches: VisibleBatches
    kinds: Mapping[str, Kind[msgspec.Struct]]
    pool: asyncpg.Pool

    async def create(
        self,
        request_id: UUID,
        user_id: str,
        kind: str,
        payload: msgspec.Raw,
        priority: Priority,
        run_at: datetime | None,
    ) -> OperationView:
        """Have an operation executed; a user's same request is the same one. Raises Invalid, NotFound, Unavailable."""
        operations, refused = operations_of([payload], known(self.kinds, kind).operation)
        if refused:
            field = f"payload.{refused[0].column}" if refused[0].column else "payload"
            raise Invalid(f"{field}: {refused[0].reason}", field=field)
        work_id = uuid5(request_id, user_id)
        command = AddOperations(work_id, None, 0, kind, user_id, operations, now(), True, run_at)
        await self.works[priority].handle(work_id, command, new=True)
        return await self.get(operation_id_of(work_id, 1), user_id)

    async def get(self, operation_id: UUID, user_id: str) -> OperationView:
        """What became of an operation of this user, also one of a batch. Raises NotFound, Unavailable."""
        work_id = UUID(int=max(operation_id.int - 1, 0))
        for priority in PRIORITIES:
            piece = (await self.works[priority].load(work_id, fresh=True)).state
            if piece.id and piece.batch_id is None and piece.user_id == user_id:
                result = piece.result(1)
                if result is None:
                    return OperationView(operation_id, None, 1, piece.kind, "pending")
                return OperationView(operation_id, None, 1, piece.kind, result.outcome, result.error, result.output)
        try:
            return await read_model.operation(self.pool, operation_id, user_id)
        except NotFound:
            return await self.batches.find(lambda: read_model.operation(self.pool, operation_id, user_id))
