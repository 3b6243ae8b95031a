"""How this process is, for whoever scrapes it: at `/metrics`, or on a port of its own."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.postgres import AWAY
from common.runtime import Service

COLLECT_SECONDS = 5.0
"""How long the event loop is given to tell; it is stuck otherwise, which `up` then says."""


class Process(Collector):
    """Tells how the workers of this process and its servers are, as far as they know: nobody is asked for it."""

    def __init__(self, services: Sequence[Service], connected: Callable[[], bool]) -> None:
        self._workers = [(service.name, worker) for service in services for worker in service.workers]
        self._names = sorted({service.name for service in services})
        self._connected = connected

    def collect(self) -> Iterable[Metric]:
        """The figures now."""
        connected = GaugeMetricFamily("boxoffice_nats_connected", "Whether NATS can be reached from here")
        connected.add_metric([], float(self._connected()))
        yield connected
        stopped = GaugeMetricFamily(
            "boxoffice_worker_problem",
            "Whether a worker of this process does not go on; why, /health/ready says",
            labels=["service", "worker"],
        )
        away = dict.fromkeys(self._names, False)
        for service, worker in self._workers:
            stopped.add_metric([service, worker.name], float(worker.problem is not None))
            away[service] |= (worker.problem or "").startswith(AWAY)
        yield stopped
        postgres = GaugeMetricFamily(
            "boxoffice_postgres_away", "Whether a worker waits for Postgres to answer", labels=["service"]
        )
        for service, is_away in away.items():
            postgres.add_metric([service], float(is_away))
        yield postgres


def registry_of(services: Sequence[Service], connected: Callable[[], bool]) -> CollectorRegistry:
    """All that is told of a process: how its workers are, and what was counted in it."""
    registry = CollectorRegistry()
    registry.register(Process(services, connected))
    registry.register(REGISTRY)  # which collects as a collector does
    return registry


class _InLoop(Collector):
    """Collects in the event loop: in the thread that answers, what is counted would change meanwhile."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterable[Metric]:
        async def collected() -> list[Metric]:
            return list(self._registry.collect())

        return asyncio.run_coroutine_threadsafe(collected(), self._loop).result(COLLECT_SECONDS)


@contextmanager
def scraped_at(host: str, port: int, registry: CollectorRegistry) -> Iterator[None]:
    """A port that answers whoever scrapes, and nothing else. Raises OSError when it is taken, and says which."""
    loop = CollectorRegistry()
    loop.register(_InLoop(registry))
    try:
        server, thread = start_http_server(port, host, loop)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {host}:{port} (BOXOFFICE_METRICS_PORT)") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
