"""Rules run again over recorded history, against reading and decoding the same events and doing nothing with them."""

from time import perf_counter

import nats

from services.cli.decide import codes, decide_again
from services.cli.sandbox import INSTALLED
from tests.benchmarks.events import fill, sale
from tests.benchmarks.rebuild import TICKETS, decode_only
from tests.benchmarks.row import Measured, Row, Scene, alternate, at_least


async def measure(scene: Scene) -> Measured:
    """Events per second, from the start of the sandbox to the report."""
    count = scene.size(100_000, 20_000)
    async with scene.system() as platform, await nats.connect(platform.settings.nats_url) as client:
        scene.tell(f"{count:,} events to decide again")
        await fill(platform.client, "orders", sale(count, TICKETS))

        async def ours() -> float:
            began = perf_counter()
            report = await decide_again(platform.event_log, "orders", code, code)
            took = perf_counter() - began
            assert (report.decisions, report.differ) == (count, [])
            return count / took

        async with codes(INSTALLED, None, None) as (code, _):
            return Measured(
                "/s", *await alternate(scene, ours, lambda: decode_only(client, count)), details={"events": count}
            )


REPLAY_DECIDE = Row(
    "replay-decide", "rules run again over history", "ordered consumer, decoding only", at_least(0.5), measure
)
