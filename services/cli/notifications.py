"""`boxoffice notifications tail`: what somebody is told, as it happens, over a WebSocket that comes back by itself."""

import random
from asyncio import sleep
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec
from rich.console import Console
from rich.markup import escape
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from common.errors import Invalid
from services.cli.who import Who, why

LONGEST_PAUSE = 5.0

MISSED = "[yellow]Some were missed: they are in the inbox.[/]"
REPLACED = "[yellow]The log was replaced: what the new one has had until now is in the inbox.[/]"


async def notifications(
    url: str, who: Who, after: int | None, console: Console
) -> AsyncGenerator[dict[str, Any], None]:
    """Somebody's notifications past `after` (by default what was not acknowledged), each once, for ever.

    They are acknowledged as they are taken. A connection that is lost is made again, from where it was.
    Raises Invalid for an address that is none, Refusal when the system does not let them in.
    """
    address = f"{socket_address(url)}/api/notifications/ws"
    log: str | None = None  # that `after` is a cursor of
    pause, lost = 0.25, False
    told: set[str] = set()  # why it is lost, since it was
    wrong: set[str] = set()
    while True:
        asked: float | None = None  # seconds that the server asks to wait
        reason = ""
        try:
            place = urlencode({name: value for name, value in (("after", after), ("log", log)) if value is not None})
            async with connect(f"{address}?{place}", additional_headers=who.headers, open_timeout=5) as socket:
                if lost:
                    console.print("[dim]connected again[/]")
                pause, lost = 0.25, False
                told.clear()
                async for text in socket:
                    message = msgspec.json.decode(text)
                    if message["type"] == "resumed":
                        if not message["recovered"]:
                            replaced = log not in (None, message["log"])
                            console.print(REPLACED if replaced else MISSED, soft_wrap=True)
                        after, log = message["cursor"], message["log"]
                    elif message["type"] == "notification":
                        notification: dict[str, Any] = message["notification"]
                        if after is None or notification["cursor"] > after:
                            yield notification
                            after = notification["cursor"]
                        await socket.send(msgspec.json.encode({"ack": after}).decode())
                    elif message["type"] == "wrong" and message["detail"] not in wrong:
                        wrong.add(message["detail"])
                        console.print(f"[yellow]{url} says: {escape(message['detail'])}[/]", soft_wrap=True)
                    elif message["type"] == "ended":
                        reason = message["reason"]
                        asked = None if message["retry_ms"] is None else message["retry_ms"] / 1000
        except InvalidStatus as error:
            status, body = error.response.status_code, bytes(error.response.body or b"")
            if status < 500 and status != HTTPStatus.TOO_MANY_REQUESTS:
                raise who.refused(url, status, body, error.response.headers) from error
            reason = why(status, body)
            asked = seconds(error.response.headers.get("Retry-After"))
        except ConnectionClosed as error:
            reason = reason or (error.rcvd.reason if error.rcvd else "")
        except (OSError, WebSocketException):
            pass
        if reason not in told and (reason or not told):
            because = f": {escape(reason)}" if reason else "."
            console.print(f"[yellow]The connection to {url} is lost; trying again{because}[/]", soft_wrap=True)
        told.add(reason)
        lost = True
        await sleep(asked or random.uniform(0.5, 1) * pause)  # noqa: S311 (jitter)
        pause = min(2 * pause, LONGEST_PAUSE)


def seconds(given: str | None) -> float | None:
    """How long a refusal asks to wait, and a moment more: not all come at once."""
    return float(given) + random.random() if given and given.isdecimal() else None  # noqa: S311 (jitter)


def socket_address(url: str) -> str:
    """Where the WebSockets of a system at `url` are. Raises Invalid."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise Invalid(f"--url: An address as http://127.0.0.1:8080 is needed, not {url!r}.", field="url", got=url)
    return f"ws{url.rstrip('/')[4:]}"


async def tail(url: str, who: Who, after: int | None, console: Console) -> None:
    """Print what somebody is told, until somebody ends it."""
    console.print(f"[dim]what {who.name} is told; Ctrl-C ends it[/]")
    async for told in notifications(url, who, after, console):
        line = f"[dim]{told['at'][11:19]}[/] [bold]{told['kind']:<16}[/] "
        console.print(line, end="")
        console.print(told["text"], markup=False, highlight=False, soft_wrap=True)
