"""A crowd with a WebSocket each, which is opened again whenever it is lost. A process of its own.

It reads a `Crowd` from the first line of stdin and tells when all are connected; from then on each line is an `Await`,
which it answers with a `Heard` on stdout, all JSON. So lean that the server is what is measured.
"""

import asyncio
import random
import resource
import sys
from datetime import datetime
from statistics import quantiles
from time import perf_counter, time
from typing import cast

import msgspec
import uvloop

from common.runtime import open_many_files

AT_ONCE = 100
"""Connections that are being opened at a time."""
AGAIN, AGAIN_AT_MOST = 0.25, 2.0
"""Seconds until a lost connection is opened again; after each try that fails twice as many."""
ACKNOWLEDGED_EVERY, SLICES = 1.0, 50
"""Seconds in which each acknowledges what has come, and in how many portions of the crowd."""

TRY_AGAIN = (1012, 1013)
"""Why a server closes that expects everybody to come back."""

TEXT, PING, PONG, CLOSE = 0x1, 0x9, 0xA, 0x8


class Crowd(msgspec.Struct, frozen=True):
    """`sockets` on `port`, those of `users` people. `timed`: when was each message sent? `acknowledges`: does it say
    what has come?
    """

    port: int
    path: str
    sockets: int
    users: int
    timed: bool
    acknowledges: bool


class Await(msgspec.Struct, frozen=True):
    """Wait until so many messages more have come, all together, and all are connected."""

    messages: int
    within: float


class Heard(msgspec.Struct, frozen=True):
    """What has come. The times are from when a message says that it was made, in milliseconds."""

    messages: int = 0
    repeated: int = 0
    seconds: float = 0
    p50_ms: float = 0
    p99_ms: float = 0
    longest_ms: float = 0
    cpu: float = 0
    wrong: str = ""


class Tally:
    """What all of them got."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.open = 0
        self.messages = 0
        self.repeated = 0
        self.wanted = 0
        self.late: list[tuple[float, bytes]] = []
        self.wrong = ""
        self.wake = asyncio.Event()

    def look(self) -> None:
        if self.messages >= self.wanted and self.open == self.crowd.sockets:
            self.wake.set()

    async def heard(self, asked: Await) -> Heard:
        """Wait for what is asked, and tell it."""
        began, used = perf_counter(), cpu()
        self.wanted = asked.messages
        self.wake.clear()
        self.look()
        try:
            await asyncio.wait_for(self.wake.wait(), asked.within)
        except TimeoutError:
            self.wrong = self.wrong or f"{self.messages} of {asked.messages} messages, {self.open} are connected"
        late = [1000 * (at - datetime.fromisoformat(made.decode()).timestamp()) for at, made in self.late]
        percentiles = quantiles(late, n=100) if len(late) > 1 else [0.0] * 99
        seconds = perf_counter() - began
        share = (cpu() - used) / seconds
        told = (percentiles[49], percentiles[98], max(late, default=0), share)
        heard = Heard(self.messages, self.repeated, seconds, *told, self.wrong)
        self.messages = self.repeated = 0
        self.late.clear()
        return heard


class Socket(asyncio.Protocol):
    """One person's WebSocket (RFC 6455), over as many connections as it takes."""

    def __init__(self, number: int, tally: Tally) -> None:
        self._tally = tally
        self._user = f"user-{number % tally.crowd.users}"
        self._buffer = b""
        self._open = False
        self._tries = 0
        self._cursor = 0
        self._acknowledged = 0
        self._transport: asyncio.Transport | None = None

    async def connect(self) -> None:
        """Open it; it opens itself again from then on."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._tally.crowd.port)
        except OSError:
            self._again()

    def _again(self) -> None:
        pause = min(AGAIN * 2**self._tries, AGAIN_AT_MOST) * random.uniform(0.5, 1)  # noqa: S311 (no secret)
        self._tries += 1
        loop = asyncio.get_running_loop()
        loop.call_later(pause, lambda: loop.create_task(self.connect()))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._buffer = b""
        self._transport.write(
            f"GET {self._tally.crowd.path}?after={self._cursor} HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{self._tally.crowd.port}\r\nAuthorization: Bearer dev:{self._user}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n".encode()  # as browsers do
        )

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._open and not self._opened():
            return
        while len(frame := self._buffer) >= 2:
            start, length = 2, frame[1]
            if length == 126:
                start, length = 4, int.from_bytes(frame[2:4], "big")
            elif length == 127:
                start, length = 10, int.from_bytes(frame[2:10], "big")
            if len(frame) < start + length:
                return
            self._buffer = frame[start + length :]
            self._take(frame[0], frame[start : start + length])

    def _opened(self) -> bool:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return False
        if not head.startswith(b"HTTP/1.1 101") or b"permessage-deflate" in head:
            self._tally.wrong = head.decode()
            return False
        self._buffer = rest
        self._open, self._tries = True, 0
        self._tally.open += 1
        self._tally.look()
        return True

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == 0x80 | TEXT:
            at = payload.find(b'"cursor":') + 9
            cursor = int(payload[at : at + 20].partition(b",")[0].rstrip(b"}"))
            if not payload.startswith(b'{"type":"notification"'):
                return
            if cursor <= self._cursor:
                self._tally.repeated += 1
                return
            self._cursor = cursor
            self._tally.messages += 1
            if self._tally.crowd.timed:
                made = payload.find(b'"at":"') + 6
                self._tally.late.append((time(), payload[made : payload.find(b'"', made)]))
            self._tally.look()
        elif kind == 0x80 | PING:
            self._send(PONG, payload)
        elif kind == 0x80 | CLOSE and self._transport:
            if int.from_bytes(payload[:2], "big") not in TRY_AGAIN:
                self._tally.wrong = f"a socket was closed: {payload[2:].decode()}"
            self._transport.close()

    def _send(self, kind: int, payload: bytes) -> None:
        if self._transport:
            mask = b"\0\0\0\0"  # under which it stays as it is
            self._transport.write(bytes((0x80 | kind, 0x80 | len(payload))) + mask + payload)

    def acknowledge(self) -> None:
        """Say what has come."""
        if self._open and self._cursor > self._acknowledged:
            self._acknowledged = self._cursor
            self._send(TEXT, b'{"ack":%d}' % self._cursor)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        if self._open:
            self._open = False
            self._tally.open -= 1
        self._again()


def cpu() -> float:
    """Seconds of a core that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def acknowledge(sockets: list[Socket]) -> None:
    """Have each say what has come, now and then."""
    while True:
        for portion in range(SLICES):
            await asyncio.sleep(ACKNOWLEDGED_EVERY / SLICES)
            for socket in sockets[portion::SLICES]:
                socket.acknowledge()


async def main() -> None:
    """Connect, and answer until stdin ends."""
    open_many_files()
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    crowd = msgspec.json.decode(await stdin.readline(), type=Crowd)
    tally = Tally(crowd)
    sockets = [Socket(number, tally) for number in range(crowd.sockets)]
    for first in range(0, crowd.sockets, AT_ONCE):
        await asyncio.gather(*(socket.connect() for socket in sockets[first : first + AT_ONCE]))
    saying = asyncio.create_task(acknowledge(sockets)) if crowd.acknowledges else None
    asked: bytes = msgspec.json.encode(Await(0, 30))
    while asked:
        heard = await tally.heard(msgspec.json.decode(asked, type=Await))
        sys.stdout.buffer.write(msgspec.json.encode(heard) + b"\n")
        sys.stdout.buffer.flush()
        asked = await stdin.readline()
    if saying:
        saying.cancel()


if __name__ == "__main__":
    uvloop.run(main())
