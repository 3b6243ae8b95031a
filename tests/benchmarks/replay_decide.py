"""Rules run again over recorded history, against reading and decoding the same events and doing nothing with them."""

import shutil
from time import perf_counter

import nats

from services.cli.decide import decide_again
from services.cli.sandbox import INSTALLED, Code
from tests.benchmarks.events import fill, sale
from tests.benchmarks.rebuild import TICKETS, decode_only
from tests.benchmarks.row import Measured, Row, Scene, alternate, at_least


async def measure(scene: Scene, *, two: bool) -> Measured:
    """Events per second, from the start of the sandbox to the report. `two`: another code folds what is recorded."""
    count = scene.size(100_000, 20_000)
    async with scene.system() as platform, await nats.connect(platform.settings.nats_url) as client:
        scene.tell(f"{count:,} events to decide again")
        await fill(platform.client, "orders", sale(count, TICKETS))
        tried = against = Code(INSTALLED, "the installed code")
        if two:
            against = Code(scene.home / "copy", "a copy of it")
            for package in ("common", "services"):
                shutil.copytree(INSTALLED / package, against.tree / package)

        async def ours() -> float:
            began = perf_counter()
            report = await decide_again(platform.event_log, "orders", tried, against)
            took = perf_counter() - began
            assert (report.decisions, report.differ) == (count, [])
            return count / took

        figures = await alternate(scene, ours, lambda: decode_only(client, count))
    return Measured("/s", *figures, details={"events": count})


AGAINST = "ordered consumer, decoding only"
REPLAY_DECIDE = Row(
    "replay-decide",
    "rules run again over recorded history",
    AGAINST,
    at_least(0.5),
    lambda scene: measure(scene, two=False),
)
REPLAY_DECIDE_TWO = Row(
    "replay-decide-two",
    "the same, held against another code, in two processes",
    AGAINST,
    at_least(0.5),
    lambda scene: measure(scene, two=True),
)
