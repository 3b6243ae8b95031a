"""What a buyer shows at the door."""

from uuid import UUID

import msgspec
import pytest

from common.clock import new_id, now
from common.errors import Conflict
from services.orders.domain import Order, Status
from services.orders.e_ticket import e_ticket
from services.orders.read_model import OrderView
from tests.paper import codes_in, text_in

ORDER = UUID("01920c3c-7a3e-7cc4-8a3e-3d1f0c5b9a10")


def order(status: Status, quantity: int = 2) -> OrderView:
    placed = Order(ORDER, new_id(), "ada", "Opening night in ŁÓDŹ", quantity, 2500, "EUR", now(), now(), 1)
    closed = now() if status in ("complete", "cancelled") else None
    return OrderView.of(msgspec.structs.replace(placed, status=status, closed_at=closed))


@pytest.mark.parametrize(("quantity", "seats"), [(1, "1 seat"), (2, "2 seats")])
def test_it_says_what_was_bought_and_its_code_names_the_order(quantity: int, seats: str) -> None:
    document = e_ticket(order("complete", quantity))
    text = text_in(document).split("\n")
    assert text[:2] == ["Opening night in ŁÓDŹ", seats]
    assert f"Order {ORDER}" in text
    assert codes_in(document) == [[f"urn:uuid:{ORDER}"]]


@pytest.mark.parametrize("status", ["created", "awaiting_payment", "cancelled"])
def test_there_is_none_of_what_is_not_paid(status: Status) -> None:
    with pytest.raises(Conflict, match=f"it is {status}"):
        e_ticket(order(status))
