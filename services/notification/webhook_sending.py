"""Posting to a webhook: signed (Standard Webhooks), to a checked address, within limits, and asking nobody else."""

import asyncio
import base64
import hashlib
import hmac
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Self
from uuid import UUID

import httpcore
import msgspec

from common.clock import now
from common.errors import Invalid, Unavailable
from common.events import NotificationKind, NotificationRaised
from services.notification.addresses import Target, is_public, refused, target_of
from services.notification.webhooks import LONGEST_PAUSE, Answer

CONNECT_SECONDS = 5.0
SECONDS = 15.0
"""Seconds that a post may take in all."""

READ_BYTES = 4_096
"""Bytes of an answer that are read."""
KEPT = 200
"""Characters that are kept of what was wrong."""

TRIED = 3
"""Addresses of a host that are tried at most."""

RESOLVING = 32
"""Names that are looked up at a time. In threads of their own: a name server that hangs then holds up nothing else."""

Header = tuple[str, str]

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""A host and a port -> its IP addresses. Raises OSError."""


class Told(msgspec.Struct, frozen=True):
    """A notification, as a receiver has it."""

    id: UUID
    kind: NotificationKind
    about: UUID
    text: str
    facts: dict[str, str | int]
    at: datetime


class Message(msgspec.Struct, frozen=True):
    """A body, as Standard Webhooks recommend it."""

    type: NotificationKind
    timestamp: datetime
    data: Told


def body_of(event: NotificationRaised) -> str:
    """What a receiver is sent of a notification."""
    told = Told(event.notification_id, event.kind, event.about, event.text, event.facts, event.at)
    return msgspec.json.encode(Message(event.kind, event.at, told)).decode()


class Secrets:
    """The secrets of webhooks. All are derived from one, so none of them is kept anywhere."""

    def __init__(self, secret: str) -> None:
        """`secret`: of this system."""
        self._key = secret.encode()

    def of(self, webhook_id: UUID, number: int) -> str:
        """The `number`th secret of a webhook, as its user has it."""
        return "whsec_" + base64.b64encode(self._bytes(webhook_id, number)).decode()

    def sign(
        self, webhook_id: UUID, numbers: Sequence[int], delivery_id: UUID, at: datetime, body: str
    ) -> list[Header]:
        """The headers that say who sends, and with which of its secrets that can be checked."""
        timestamp = str(int(at.timestamp()))
        signed = f"{delivery_id}.{timestamp}.{body}".encode()
        made = [hmac.digest(self._bytes(webhook_id, number), signed, hashlib.sha256) for number in numbers]
        signatures = " ".join("v1," + base64.b64encode(each).decode() for each in made)
        return [("webhook-id", str(delivery_id)), ("webhook-timestamp", timestamp), ("webhook-signature", signatures)]

    def _bytes(self, webhook_id: UUID, number: int) -> bytes:
        return hmac.digest(self._key, f"{webhook_id}.{number}".encode(), hashlib.sha256)


class AddressRefused(httpcore.ConnectError):
    """It leads to where we do not go."""


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only, and to the very address that was looked at: a name is resolved once."""

    def __init__(self, resolve: Resolve, *, private: bool) -> None:
        """`private`: all addresses will do."""
        self._resolve = resolve
        self._private = private
        self._network = httpcore.AnyIOBackend()

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """The addresses of a host. Raises AddressRefused unless every one of them is public; OSError."""
        found = await self._resolve(host, port)
        if not found:
            raise AddressRefused(f"{host} has no address")
        if not self._private and not all(is_public(address) for address in found):
            raise AddressRefused(f"{host} is not, or not only, at addresses of the public internet")
        return found

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (the interface of httpcore)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises AddressRefused, httpcore.ConnectError, TimeoutError."""
        async with asyncio.timeout(timeout):
            *others, last = (await self.addresses(host, port))[:TRIED]
            for address in others:
                try:
                    return await self._network.connect_tcp(
                        address, port, CONNECT_SECONDS / TRIED, local_address, socket_options
                    )
                except (httpcore.ConnectError, httpcore.ConnectTimeout):
                    continue  # the last one says why
            return await self._network.connect_tcp(last, port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Resolver:
    """Looks names up as the system does."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(RESOLVING, thread_name_prefix="resolve")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """As `Resolve`."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(each[4][0]) for each in found))

    def close(self) -> None:
        """Look up nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Sender:
    """Posts to webhooks. It follows no redirect, keeps no connection and knows no proxy."""

    def __init__(self, *, private: bool, resolve: Resolve | None = None, trust: ssl.SSLContext | None = None) -> None:
        """`private`: also to private addresses, and over http. `trust`: whose certificates are believed."""
        self._private = private
        self._resolver = Resolver()
        self._network = PublicNetwork(resolve or self._resolver, private=private)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trust or httpcore.default_ssl_context(),
            max_connections=None,
            max_keepalive_connections=0,  # each post looks at the address anew
            network_backend=self._network,
        )

    async def check(self, url: str) -> None:
        """Raises Invalid for an address to which nothing would be posted, Unavailable when that cannot be told now."""
        target = target_of(url, private=self._private)
        if self._private:
            return
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._network.addresses(target.host, target.port)
        except AddressRefused as error:
            raise refused(str(error), url) from error
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise Unavailable("Names cannot be looked up now; try again.") from error
            raise refused("There is no host of this name", url) from error
        except (OSError, UnicodeError) as error:  # a TimeoutError is an OSError
            raise Unavailable("The name could not be looked up in time; try again.") from error

    async def post(self, url: str, headers: Sequence[Header], body: str) -> Answer:
        """Post `body`, and what was answered: anything but 2xx is an error."""
        try:
            target = target_of(url, private=self._private)
            async with asyncio.timeout(SECONDS):
                return await self._post(target, headers, body)
        except (TimeoutError, httpcore.TimeoutException):
            return failed(None, f"No answer within {SECONDS:.0f} s, or no connection within {CONNECT_SECONDS:.0f}")
        except Invalid as error:  # it was allowed once
            return failed(None, error.detail)
        except socket.gaierror as error:
            return failed(None, f"Its host was not found: {error.strerror}")
        except httpcore.ProtocolError as error:
            return failed(None, f"It does not speak HTTP: {error}")
        except (httpcore.NetworkError, OSError, ValueError) as error:  # ValueError: a name that TLS cannot say
            return failed(None, f"No connection: {in_words(error)}")

    async def _post(self, target: Target, headers: Sequence[Header], body: str) -> Answer:
        url = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        content = body.encode()
        ours = [
            ("Host", target.authority),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(content))),
            ("User-Agent", "Boxoffice-Webhooks/1"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ]
        given = [(name.encode(), value.encode()) for name, value in (*ours, *headers)]
        limits = {"connect": CONNECT_SECONDS, "read": SECONDS, "write": SECONDS, "pool": SECONDS}
        async with self._pool.stream(
            "POST", url, headers=given, content=content, extensions={"timeout": limits}
        ) as response:
            if 200 <= response.status < 300:
                return Answer(response.status, None)
            if 300 <= response.status < 400:
                return failed(response.status, f"Answered {titled(response.status)}; redirects are not followed")
            said = b""
            async for block in response.aiter_stream():
                said += block
                if len(said) >= READ_BYTES:
                    break
            words = " ".join(
                "".join(each if each.isprintable() else " " for each in said.decode(errors="replace")).split()
            )
            error = f"Answered {titled(response.status)}" + (f": {words}" if words else "")
            return failed(response.status, error, retry_after(dict(response.headers)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()
        self._resolver.close()


def in_words(error: BaseException) -> str:
    """What the system says, if it was the system that refused; else what the library does."""
    at = error
    while (before := at.__cause__ or at.__context__) is not None:  # httpcore takes the cause away, and not the context
        at = before
    system = isinstance(at, OSError) and not isinstance(at, ssl.SSLError) and at.errno
    return os.strerror(system) if system else str(error) or type(error).__name__


def titled(status: int) -> str:
    """A status with its name."""
    return f"{status} {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else str(status)


def failed(status: int | None, error: str, retry_after: float = 0) -> Answer:
    """An answer that is none."""
    return Answer(status, error[:KEPT], retry_after)


def retry_after(headers: dict[bytes, bytes]) -> float:
    """Seconds that the other side asks for (RFC 9110, 10.2.3), a day at most; 0 for none."""
    said = next((value.decode("latin-1") for name, value in headers.items() if name.lower() == b"retry-after"), "")
    if said.isascii() and said.isdigit():
        return min(float(said[:9]), LONGEST_PAUSE)
    try:
        return max(0.0, min((parsedate_to_datetime(said) - now()).total_seconds(), LONGEST_PAUSE))
    except (TypeError, ValueError):  # TypeError: a date without a zone
        return 0
