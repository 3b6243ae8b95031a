"""Kinds whose operations belong to other services, which get them in chunks and answer for each."""

from collections.abc import Sequence
from typing import ClassVar, TypeVar, assert_never

import msgspec

from common.errors import Unavailable
from common.requests import Endpoint, bulk
from common.requests.bulk import Chunk, Command, Verdicts
from common.requests.orders import CANCEL_ORDERS, OrderCancellation
from common.requests.tickets import CREATE_TICKETS, UPDATE_TICKETS, NewTicket, TicketUpdate
from services.batch.kinds import Answer, Done, Kind, Refused, Task, TryAgain, Work

Op = TypeVar("Op", bound=msgspec.Struct)


class RemoteKind(Kind[Op]):
    """Sends operations to the service that owns what they are about.

    That service knows each by its id, so what was sent twice is done once.
    """

    transactional = False
    limit = bulk.COMMANDS_LIMIT
    endpoint: ClassVar[Endpoint[Chunk, Verdicts]]

    async def execute_many(self, work: Work, operations: Sequence[Task[Op]]) -> Sequence[Answer]:
        """Raises Unavailable when the service does not answer; Invalid for a single operation that is too large."""
        if work.requests is None:
            raise Unavailable("There is nobody here who asks other services.")
        commands = [Command(task.id, task.user_id, msgspec.Raw(msgspec.json.encode(task.what))) for task in operations]
        answers: list[Answer] = []
        for chunk in bulk.chunks(commands):
            told = await work.requests.ask(self.endpoint, chunk, within=self.timeout / 2)
            if len(told.verdicts) != len(chunk.commands):
                raise Unavailable(f"{self.endpoint.service} did not answer for each operation.")
            answers += [answer(verdict) for verdict in told.verdicts]
        return answers


def answer(verdict: bulk.Done | bulk.Refused | bulk.TryAgain) -> Answer:
    """A service's verdict on an operation, as the answer to who handed it in."""
    match verdict:
        case bulk.Done(thing_id):
            return Done(str(thing_id))
        case bulk.Refused(reason):
            return Refused(reason)
        case bulk.TryAgain(reason):
            return TryAgain(reason)
        case _:
            assert_never(verdict)


class CreateTickets(RemoteKind[NewTicket]):
    """Puts tickets on sale. The output of an operation is the id of its ticket."""

    name = "tickets.create"
    area = "tickets"
    operation = NewTicket
    endpoint = CREATE_TICKETS


class UpdateTickets(RemoteKind[TicketUpdate]):
    """Changes listings. The output of an operation is the id of its ticket."""

    name = "tickets.update"
    area = "tickets"
    operation = TicketUpdate
    endpoint = UPDATE_TICKETS


class CancelOrders(RemoteKind[OrderCancellation]):
    """Cancels orders of whoever asks. The output of an operation is the id of its order."""

    name = "orders.cancel"
    area = "orders"
    role = "buyer"
    operation = OrderCancellation
    endpoint = CANCEL_ORDERS
