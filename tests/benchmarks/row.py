"""A row: one promise, measured on both sides in turn."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec

from common.runtime import Platform, connect
from common.settings import Settings
from services.cli import system
from services.cli.servers import NatsServer, PostgresServer

ROUNDS = 5
"""How often each side is measured; the middle figure counts."""


class Measured(msgspec.Struct, frozen=True):
    """The figures of each side, one for each round: in `/s`, where more is better, or in `ms` or `KB`, where less is.

    `missing` says why there is no reference; `details` are further figures for who wants to know more.
    """

    unit: str
    ours: Sequence[float]
    reference: Sequence[float] = ()
    missing: str = ""
    details: dict[str, Any] = {}

    @property
    def ratio(self) -> float | None:
        """How many times better we are than the reference; None without one.

        The middle one of each round's: what disturbs a machine for a minute disturbs both sides of a round.
        """
        if not self.reference:
            return None
        rounds = [ours / reference for ours, reference in zip(self.ours, self.reference, strict=True)]
        return median(rounds) if self.unit == "/s" else 1 / median(rounds)


class Target(msgspec.Struct, frozen=True):
    """What is promised, in words and as a question."""

    text: str
    reached: Callable[[Measured], bool]


def at_least(ratio: float) -> Target:
    """Our figure is at least `ratio` times the reference's."""
    return Target(f">= {ratio:g}x", lambda measured: (measured.ratio or 0) >= ratio)


class Scene(msgspec.Struct, frozen=True):
    """What a row is given: a folder, whether small sizes will do, and whom to tell how it goes."""

    home: Path
    quick: bool
    tell: Callable[[str], None]

    def size(self, full: int, quick: int) -> int:
        """How many."""
        return quick if self.quick else full

    @asynccontextmanager
    async def nats(self) -> AsyncIterator[NatsServer]:
        """A NATS server with nothing in it."""
        server = NatsServer(self.home / f"nats-{uuid4().hex[:8]}")
        await server.start()
        try:
            yield server
        finally:
            await server.stop()

    @asynccontextmanager
    async def postgres(self) -> AsyncIterator[PostgresServer]:
        """A Postgres with nothing in it."""
        server = PostgresServer(self.home / f"postgres-{uuid4().hex[:8]}")
        await server.start()
        try:
            yield server
        finally:
            await server.stop()

    @asynccontextmanager
    async def system(self) -> AsyncIterator[Platform]:
        """Both servers, connected and migrated."""
        self.tell("starting the servers")
        async with self.nats() as nats, self.postgres() as postgres:
            settings = Settings(nats_url=nats.url, database_url=postgres.url, auth="dev")
            await system.migrate(settings, lambda _: None)
            async with connect(settings, "bench") as platform:
                yield platform


class Row(msgspec.Struct, frozen=True):
    """One promise: what is measured, against what, and what is to be reached."""

    name: str
    path: str
    reference: str
    target: Target
    measure: Callable[[Scene], Awaitable[Measured]]


async def alternate(
    scene: Scene, ours: Callable[[], Awaitable[float]], reference: Callable[[], Awaitable[float]], rounds: int = ROUNDS
) -> tuple[list[float], list[float]]:
    """Measure each side once a round, and begin each round with the side that the last one ended with."""
    figures: dict[str, list[float]] = {"ours": [], "reference": []}
    sides = [("ours", ours), ("reference", reference)]
    rounds = scene.size(rounds, 1)
    for number in range(1, rounds + 1):
        for name, side in sides:
            scene.tell(f"round {number} of {rounds}: {name}")
            gc.collect()
            figures[name].append(await side())
        sides.reverse()
    return figures["ours"], figures["reference"]


async def new_database(url: str) -> str:
    """The address of a database with nothing in it, on the Postgres at `url`."""
    name = f"bench_{uuid4().hex}"
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"create database {name}")
    finally:
        await connection.close()
    return url.replace("/postgres?", f"/{name}?")


async def until(look: Callable[[], Awaitable[bool]], what: str, within: float = 60) -> None:
    """Look until it is so; raises TimeoutError, which names `what` was waited for."""
    deadline = asyncio.get_running_loop().time() + within
    while not await look():
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(f"{what}: not within {within:.0f} s")
        await asyncio.sleep(0.05)
