"""What the orders service can be asked: many orders to be cancelled in one request."""

from uuid import UUID

import msgspec

from common.requests import Endpoint
from common.requests.bulk import Chunk, Verdicts


class OrderCancellation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which of their orders a buyer gives back: the order, and the ticket it is for."""

    ticket_id: UUID
    order_id: UUID


CANCEL_ORDERS = Endpoint("orders", "cancel", Chunk, Verdicts)
"""Each payload is an `OrderCancellation`, each Done has the id of the order."""
