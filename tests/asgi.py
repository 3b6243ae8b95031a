"""An ASGI app on a port of loopback, in the loop of the test."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from litestar.types import ASGIApp, Receive


class _Server(uvicorn.Server):
    """One that leaves the signals to pytest."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def door() -> AsyncIterator[socket.socket]:
    """What listens already before anybody answers there, so that nobody has to wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@asynccontextmanager
async def serving(app: ASGIApp, listening: socket.socket) -> AsyncIterator[str]:
    """The address of `app`, which answers there."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    host, port = listening.getsockname()[:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await running


async def body_of(receive: Receive) -> bytes:
    """All of a request's body."""
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request", "the client has gone"
        body, more = body + message["body"], message["more_body"]
    return body
