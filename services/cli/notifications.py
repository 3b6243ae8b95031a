"""`boxoffice notifications tail`: what somebody is told, as it happens, over a WebSocket that comes back by itself."""

import random
from asyncio import sleep
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from rich.console import Console
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.http11 import Response

from common.errors import Unavailable

LONGEST_PAUSE = 5.0


async def notifications(
    url: str, user: str, after: int | None, console: Console
) -> AsyncGenerator[dict[str, Any], None]:
    """A user's notifications past `after` (by default what was not acknowledged), each once, for ever.

    They are acknowledged as they are taken. A connection that is lost is made again, from where it was.
    Raises Unavailable when the system refuses.
    """
    address = f"ws{url.rstrip('/').removeprefix('http')}/api/notifications/ws"
    headers = {"Authorization": f"Bearer dev:{user}"}
    pause, lost = 0.25, False
    while True:
        asked: float | None = None  # seconds that the server asks to wait
        try:
            place = "" if after is None else f"?after={after}"
            async with connect(address + place, additional_headers=headers, open_timeout=5) as socket:
                if lost:
                    console.print("[dim]connected again[/]")
                pause, lost = 0.25, False
                async for text in socket:
                    message = msgspec.json.decode(text)
                    if message["type"] == "resumed":
                        if not message["recovered"]:
                            console.print("[yellow]Some were missed: they are in the inbox.[/]")
                        after = message["cursor"]
                    elif message["type"] == "notification":
                        notification: dict[str, Any] = message["notification"]
                        if after is None or notification["cursor"] > after:
                            yield notification
                            after = notification["cursor"]
                        await socket.send(msgspec.json.encode({"ack": after}).decode())
                    elif message["type"] == "ended" and message["retry_ms"] is not None:
                        asked = message["retry_ms"] / 1000
        except InvalidStatus as error:
            if error.response.status_code < 500:
                raise Unavailable(f"{url} does not let {user} in: {why(error.response)}") from error
        except (OSError, WebSocketException, ConnectionClosed):
            pass
        if not lost:
            console.print(f"[yellow]The connection to {url} is lost; trying again.[/]", soft_wrap=True)
        lost = True
        await sleep(asked or random.uniform(0.5, 1) * pause)  # noqa: S311 (jitter)
        pause = min(2 * pause, LONGEST_PAUSE)


def why(response: Response) -> str:
    """What a refusal says."""
    try:
        return str(msgspec.json.decode(response.body or b"")["detail"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"it answers {response.status_code}."


async def tail(url: str, user: str, after: int | None, console: Console) -> None:
    """Print what a user is told, until somebody ends it."""
    console.print(f"[dim]what {user} is told; Ctrl-C ends it[/]")
    async for told in notifications(url, user, after, console):
        line = f"[dim]{told['at'][11:19]}[/] [bold]{told['kind']:<16}[/] "
        console.print(line, end="")
        console.print(told["text"], markup=False, highlight=False, soft_wrap=True)
