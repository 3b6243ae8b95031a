"""What a process logs: JSON, a line each, that says what it belongs to."""

from pathlib import Path

import asyncpg
import httpx
import msgspec

from common.clock import new_id, now
from common.event_log import Draft
from common.events import OrderCreated
from common.runtime import Platform
from common.telemetry import Cause
from tests.harness import ServiceProcess, eventually

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


def lines(process: ServiceProcess) -> list[dict[str, object]]:
    """All that it has logged; each line is JSON."""
    return [msgspec.json.decode(line) for line in process.log.read_bytes().splitlines()]


async def test_every_line_says_what_it_belongs_to(platform: Platform, home: Path) -> None:
    async with ServiceProcess("orders", platform.settings, home) as process:
        # A request that fails by our mistake: a table is gone.
        connection = await asyncpg.connect(platform.settings.database_url)
        await connection.execute("alter table orders.orders rename to orders_elsewhere")
        await connection.close()
        headers = {"Authorization": "Bearer dev:ada", "traceparent": TRACEPARENT, "X-Correlation-Id": "the-request"}
        async with httpx.AsyncClient(base_url=process.url, timeout=30) as http:
            assert (await http.get("/api/orders", headers=headers)).status_code >= 500
        # An event that cannot be decoded is given up on.
        cause = Cause("the-conversation", str(new_id()), TRACEPARENT)
        event = OrderCreated(
            order_id=new_id(), ticket_id=new_id(), buyer_id="ada", title="x", quantity=1, price=1, currency="EUR",
            expires_at=now(), at=now(),
        )  # fmt: skip
        headers = Draft.of(event, cause).headers("/orders.x")
        await platform.client.request(
            f"orders.{event.ticket_id}", b"{}", headers=headers | {"ce-type": "order_completed"}
        )

        async def given_up() -> list[str]:
            return [str(line["listener"]) for line in lines(process) if line["event"] == "dead_letter"]

        await eventually(given_up, ["orders-settle-payments"])
        written = lines(process)
    for line in written:
        assert line["service"] == "orders", line
        assert {"event", "level", "timestamp"} <= set(line)
    failed = next(line for line in written if line.get("correlation_id") == "the-request")
    assert (failed["trace_id"], failed["span_id"]) == (TRACE, SPAN)
    assert failed["causation_id"]
    dead = next(line for line in written if line["event"] == "dead_letter")
    assert (dead["correlation_id"], dead["event_id"]) == ("the-conversation", headers["ce-id"])
    assert (dead["causation_id"], dead["trace_id"], dead["span_id"]) == (headers["ce-id"], TRACE, SPAN)
