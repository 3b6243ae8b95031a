"""What the rows on notifications are measured against: a bare server of the `websockets` library.

It sends what it is told to, by whoever connects to /control: so many messages, to all or to one after the other.
"""

import asyncio
import os
import signal
import sys
from http import HTTPStatus

import msgspec
import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.http11 import Request, Response

from common.clock import now
from common.runtime import collect_garbage_rarely, open_many_files
from services.cli.system import BACKLOG

CURSOR, AT = "<cursor>", "<at>"
"""What stands in a text for a number, that grows, and the time."""

TICK = 0.02
"""Seconds between two portions of what is sent at a rate."""


class Send(msgspec.Struct, frozen=True):
    """`messages` of the bytes of `text`, with the time and a number in it. `per_second`: each to one of the sockets in
    turn; 0: each to all of them, as fast as it goes.
    """

    messages: int
    per_second: int
    text: str


class Sockets:
    """Those that are open."""

    def __init__(self) -> None:
        self._open: set[ServerConnection] = set()
        self._sent = 0

    async def take(self, socket: ServerConnection) -> None:
        """Serve one until it is gone."""
        if socket.request and socket.request.path.startswith("/control"):
            async for asked in socket:
                await self.send(msgspec.json.decode(asked, type=Send))
            return
        self._open.add(socket)
        try:
            async for _ in socket:
                pass
        finally:
            self._open.discard(socket)

    async def send(self, asked: Send) -> None:
        """What was asked for."""
        if not asked.per_second:
            for _ in range(asked.messages):
                broadcast(self._open, self.message(asked))
                await asyncio.sleep(0)
            return
        sockets, portion = list(self._open), round(asked.per_second * TICK)
        began = asyncio.get_running_loop().time()
        for first in range(0, asked.messages, portion):
            await asyncio.sleep(max(0, began + TICK * first / portion - asyncio.get_running_loop().time()))
            for number in range(first, first + portion):
                broadcast([sockets[number % len(sockets)]], self.message(asked))

    def message(self, asked: Send) -> str:
        """The next one."""
        self._sent += 1
        return asked.text.replace(CURSOR, str(10**6 + self._sent)).replace(AT, now().isoformat())


def ready(socket: ServerConnection, request: Request) -> Response | None:
    """Tell that it serves."""
    return socket.respond(HTTPStatus.OK, "ready\n") if request.path == "/health/ready" else None


async def main(port: int) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    sockets = Sockets()
    async with serve(
        sockets.take, "127.0.0.1", port, compression=None, backlog=BACKLOG, process_request=ready, close_timeout=1
    ):
        await stop.wait()


if __name__ == "__main__":
    open_many_files()
    collect_garbage_rarely()
    sys.exit(uvloop.run(main(int(os.environ["BOXOFFICE_PORT"]))))
