"""Buyers over HTTP, as many as there are connections, each with one request under way. A process of its own.

It reads a `Load` from stdin and writes a `Sold` to stdout, both JSON. So lean that the server is what is measured.
"""

import asyncio
import itertools
import random
import sys
from collections import Counter
from statistics import quantiles
from time import perf_counter
from typing import cast
from uuid import UUID

import msgspec
import uvloop

READ_BACK = 50
"""One order in so many is read at once by its buyer, over the same connection."""


class Load(msgspec.Struct, frozen=True):
    """Who buys what and for how long; `seconds` are measured, after those to `warm_up`.

    `bearers`: what buyers show, of each the same number and one after the other for each order; without any, names for
    development. `rate`: orders per second of all together, at most; 0: as many as they get.
    """

    port: int
    tickets: list[UUID]
    connections: int
    warm_up: float
    seconds: float
    seed: int
    bearers: list[str] = []
    rate: float = 0


class Sold(msgspec.Struct, frozen=True):
    """How it went while it was measured. `acknowledged` counts every order, also of the time before and after."""

    orders: int
    p50_ms: float
    p99_ms: float
    acknowledged: int
    read_back: int
    unexpected: dict[str, int]
    load_cpu: float


class Buyer(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, number: int, load: Load, began: float, tally: "Tally") -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        bearers = load.bearers[number :: load.connections] or [f"dev:buyer-{number}"]
        heads = [f"Host: 127.0.0.1:{load.port}\r\nAuthorization: Bearer {each}\r\n".encode() for each in bearers]
        self._heads, self._head = itertools.cycle(heads), b""
        self._choose = random.Random(load.seed + number)  # noqa: S311 (no secret)
        self._tickets = load.tickets
        self._until = began + load.warm_up + load.seconds
        self._pause = load.connections / load.rate if load.rate else 0
        self._next = began + self._pause * number / load.connections
        self._tally = tally
        self._buffer = b""
        self._sent = 0.0
        self._reading = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._buy_in_turn()

    def _send(self, request: bytes) -> None:
        assert self._transport
        self._sent = perf_counter()
        self._transport.write(request)

    def _buy_in_turn(self) -> None:
        wait = self._next - perf_counter()
        self._next += self._pause
        if self._pause and wait > 0:
            asyncio.get_running_loop().call_later(wait, self._buy)
        else:
            self._buy()

    def _buy(self) -> None:
        self._reading = False
        self._head = next(self._heads)
        body = b'{"ticket_id":"%s","quantity":1}' % str(self._choose.choice(self._tickets)).encode()
        self._send(
            b"POST /api/orders HTTP/1.1\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (self._head, len(body), body)
        )

    def _read(self, location: bytes) -> None:
        self._reading = True
        self._send(b"GET %s HTTP/1.1\r\n%s\r\n" % (location, self._head))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end]
        if len(self._buffer) < end + 4 + int(header(head, b"content-length")):
            return
        self._buffer = b""
        self._answered(int(head[9:12]), head)

    def _answered(self, status: int, head: bytes) -> None:
        at = perf_counter()
        if status != (200 if self._reading else 201):
            self._tally.unexpected[f"{'GET' if self._reading else 'POST'} {status}"] += 1
        elif self._reading:
            self._tally.read_back += 1
        else:
            self._tally.add(at, at - self._sent)
        if at > self._until:
            self._finish()
        elif status == 201 and self._tally.acknowledged % READ_BACK == 0:
            self._read(header(head, b"location"))
        else:
            self._buy_in_turn()

    def _finish(self) -> None:
        assert self._transport
        self._transport.close()
        if not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, _: Exception | None) -> None:
        if not self.done.done():
            self._tally.unexpected["connection lost"] += 1
            self.done.set_result(None)


class Tally:
    """What all buyers got."""

    def __init__(self, measured_from: float, measured_until: float) -> None:
        self.acknowledged = 0
        self.read_back = 0
        self.latencies: list[float] = []
        self.unexpected: Counter[str] = Counter()
        self._from = measured_from
        self._until = measured_until

    def add(self, at: float, took: float) -> None:
        """An order was acknowledged."""
        self.acknowledged += 1
        if self._from < at <= self._until:
            self.latencies.append(took)


def header(head: bytes, name: bytes) -> bytes:
    """The value of a response header; uvicorn writes the names in small letters."""
    start = head.index(b"\r\n" + name + b": ") + len(name) + 4
    end = head.find(b"\r\n", start)
    return head[start : end if end > 0 else None]


async def buy(load: Load) -> Sold:
    """Let the buyers in, all at once."""
    began = perf_counter()
    measured_from = began + load.warm_up
    tally = Tally(measured_from, measured_from + load.seconds)
    loop = asyncio.get_running_loop()
    buyers = [Buyer(number, load, began, tally) for number in range(load.connections)]
    for buyer in buyers:
        await loop.create_connection(lambda buyer=buyer: buyer, "127.0.0.1", load.port)  # type: ignore[misc]  # a lambda
    await asyncio.wait_for(asyncio.gather(*(buyer.done for buyer in buyers)), load.warm_up + load.seconds + 30)
    latencies = [1000 * took for took in tally.latencies]
    percentiles = quantiles(latencies, n=100) if len(latencies) > 1 else [0.0] * 99
    return Sold(
        len(latencies),
        percentiles[49],
        percentiles[98],
        tally.acknowledged,
        tally.read_back,
        dict(tally.unexpected),
        cpu(perf_counter() - began),
    )


def cpu(seconds: float) -> float:
    """The share of a core that this process used; near 1 it would be the bottleneck."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    return (used.ru_utime + used.ru_stime) / seconds


if __name__ == "__main__":
    sys.stdout.buffer.write(
        msgspec.json.encode(uvloop.run(buy(msgspec.json.decode(sys.stdin.buffer.read(), type=Load))))
    )
