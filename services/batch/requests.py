"""What other services ask over NATS: single operations."""

from typing import Any

from common.clock import now
from common.requests import Answering
from common.requests.batch import (
    CREATE_OPERATION,
    GET_OPERATION,
    NewOperation,
    OperationState,
    WantedOperation,
    start_of,
)
from services.batch.read_model import OperationView
from services.batch.singles import Singles


def answering(singles: Singles) -> list[Answering[Any, OperationState]]:
    """The answers of this service."""

    async def create(new: NewOperation) -> OperationState:
        start = start_of(new.run_at, now())
        created = await singles.create(new.request_id, new.user_id, new.kind, new.payload, new.priority, start)
        return state_of(created)

    async def get(wanted: WantedOperation) -> OperationState:
        return state_of(await singles.get(wanted.id, wanted.user_id))

    return [Answering(CREATE_OPERATION, create), Answering(GET_OPERATION, get)]


def state_of(view: OperationView) -> OperationState:
    """An operation, as other services see it."""
    return OperationState(view.id, view.kind, view.status, view.error, view.output)
