"""What a second and a third copy of every event cost: our log on three nodes of NATS, against the same on one.

The nodes share this machine's cores and disk, and no network is between them.
"""

from time import perf_counter

from common.clock import new_id
from common.event_log import Draft
from common.runtime import Platform, connect
from common.settings import Settings
from tests.benchmarks.append import IN_FLIGHT, rate
from tests.benchmarks.events import order
from tests.benchmarks.row import Measured, Row, Scene, alternate, at_least
from tests.cluster import migrate_cluster, three_nodes

ALONE = 200
"""Appends, one after the other, of which the middle one says how long one takes."""


async def measure(scene: Scene) -> Measured:
    """Events per second, each first on a subject of its own; in `details` how many ms one takes that waits alone."""
    count = scene.size(10_000, 4_000)
    alone: dict[str, list[float]] = {"ours": [], "reference": []}

    async def append(log: Platform) -> None:
        event = order(new_id())
        await log.event_log.append(f"orders.{event.ticket_id}", [Draft.of(event)], expected=0)

    async def side(name: str, log: Platform) -> float:
        took = []
        for _ in range(ALONE):
            began = perf_counter()
            await append(log)
            took.append((perf_counter() - began) * 1000)
        alone[name].append(sorted(took)[ALONE // 2])
        return await rate(lambda _: append(log), range(count))

    scene.tell("starting four nodes")
    async with (
        scene.system() as one,
        three_nodes(scene.home) as nodes,
        connect(Settings(nats_url=nodes["n0"].url), "bench") as three,
    ):
        await migrate_cluster(three.client)
        for log in (three, one):
            await side("ours", log)  # files and code: warm for whoever comes first
        alone["ours"].clear()
        figures = await alternate(scene, lambda: side("ours", three), lambda: side("reference", one))
    return Measured("/s", *figures, details={"events": count, "in_flight": IN_FLIGHT, "one_alone_ms": alone})


REPLICAS = Row("replicas", "guarded append, three replicas", "the same on one node", at_least(0.5), measure)
