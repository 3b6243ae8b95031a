"""What listens where a webhook leads: it answers as it is told, and keeps what it was sent."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import msgspec
from standardwebhooks import Webhook, WebhookVerificationError

from tests.harness import eventually


class Post(msgspec.Struct, frozen=True):
    """A request as it came. Names of headers are in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def signed_by(self, secret: str) -> bool:
        """Whether somebody else's implementation of Standard Webhooks believes it."""
        try:
            Webhook(secret).verify(self.body, self.headers)
        except WebhookVerificationError:
            return False
        return True

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


Say = Callable[[int], str]
"""What is answered to the nth post, from 1 on: a status line's end, and headers; empty: nothing, for ever."""


class Receiver:
    """An HTTP server on a port of loopback."""

    def __init__(self, say: Say = lambda _: "204 No Content", tls: ssl.SSLContext | None = None) -> None:
        self.say = say
        self._tls = tls
        self.posts: list[Post] = []
        self.busiest = 0  # posts under way at a time, at most
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/hooks?of=ada"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.close()

    async def has(self, count: int, within: float = 20) -> list[Post]:
        """Wait until exactly so many came."""

        async def look() -> int:
            return len(self.posts)

        await eventually(look, count, within)
        return self.posts

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
            body = await reader.readexactly(int(headers["content-length"]))
            self.posts.append(Post(line, headers, body))
            self.busiest = max(self.busiest, len(self._open))
            if said := self.say(len(self.posts)):
                status, *more = said.split("\r\n")
                content = more.pop() if "" in more else ""
                more = [each for each in more if each]
                answer = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *more, "", content]
                writer.write("\r\n".join(answer).encode())
                await writer.drain()
            else:
                await reader.read()  # until the other side has enough of it
        self._open.discard(writer)
        writer.close()
