"""What a buyer shows at the door: a paid order on paper, with a code that names it."""

from common.errors import Conflict
from services.orders.read_model import OrderView


def e_ticket(order: OrderView) -> bytes:
    """The PDF of an order; its QR code says `urn:uuid:` and the order's id (RFC 9562). Raises Conflict if not paid."""
    if order.status != "complete" or order.closed_at is None:
        raise Conflict(f"There is an e-ticket once the order is paid; it is {order.status}.")
    from common.pdf import Line, pdf  # which takes as long to load as all of the service, and most never need it

    seats = "1 seat" if order.quantity == 1 else f"{order.quantity} seats"
    return pdf(
        [
            Line(order.title),
            Line("", [order.id.urn]),
            Line(seats),
            Line(f"Paid on {order.closed_at:%Y-%m-%d at %H:%M} UTC"),
            Line(""),
            Line(f"Order {order.id}"),
            Line("It lets in whoever shows it first: keep it to yourself."),
        ]
    )
