"""Past events delivered to a listener of the running system once more, over HTTP, at a bounded rate."""

import asyncio
from contextlib import aclosing
from typing import Any, Literal

import click
import httpx
import msgspec
from rich.console import Console
from rich.markup import escape

from common.errors import Unavailable
from common.event_log import Stored
from common.rehearsal import Rehearsal
from common.runtime import connect
from common.settings import Settings
from services.cli.rehearse import Progress, Selection, event_of, head_of
from services.cli.system import rehearsed
from services.cli.who import Who, why

Ending = Literal["done", "failed", "unknown"]

PATIENCE = 60.0
"""Seconds that an answer may take; it comes when the listener is done, or says that it is not known."""


class Redelivered(msgspec.Struct, frozen=True):
    """What came of an event; `detail` says why it is not done."""

    ending: Ending
    detail: str = ""


async def redeliver(
    name: str,
    selection: Selection,
    settings: Settings,
    url: str,
    who: Who,
    rate: float,
    console: Console,
    progress: Progress,
    *,
    as_json: bool,
) -> bool:
    """Have listener `name` hear each of these events again, `rate` a second at most; whether all of it was done.

    However it ends, it says how far it came. Raises Invalid, Refusal, Unavailable when nobody answers at `url`.
    """
    endings: dict[Ending, int] = {"done": 0, "failed": 0, "unknown": 0}
    loop = asyncio.get_running_loop()
    due, goes_on = loop.time(), 0
    try:
        async with (
            connect(settings, "redelivery") as platform,
            httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http,
        ):
            listener = rehearsed(name, Rehearsal(platform.event_log))  # to know what it hears
            async with aclosing(selection.of(platform.event_log, listener, progress)) as events:
                async for stored in events:
                    await asyncio.sleep(max(0, due - loop.time()))
                    due, goes_on = loop.time() + 1 / rate, stored.sequence
                    came = await deliver(http, name, stored, who)
                    goes_on += 1
                    endings[came.ending] += 1
                    tell(stored, came, console, as_json=as_json)
        goes_on = 0
    finally:
        if not as_json:
            counted = ", ".join(f"{times:,} {ending}" for ending, times in endings.items())
            console.print(f"[bold]{name}[/] heard {sum(endings.values()):,} again: {counted}", soft_wrap=True)
        if goes_on:
            click.echo(f"It stopped before its end. To go on: --since {goes_on}", err=True)
    return endings["done"] == sum(endings.values())


async def deliver(http: httpx.AsyncClient, name: str, stored: Stored, who: Who) -> Redelivered:
    """Have one event delivered, as soon as the system lets us. Raises Refusal, Unavailable."""
    what = {"listener": name, "stream": stored.stream, "sequence": stored.sequence}
    while True:
        try:
            answer = await http.post("/api/events/redeliveries", json=what, headers=who.headers)
        except httpx.ConnectError as error:
            raise Unavailable(f"{http.base_url} does not answer ({type(error).__name__}). Is it running?") from error
        except httpx.TransportError as error:
            return Redelivered("unknown", f"no answer ({type(error).__name__})")
        if answer.status_code != 429:
            break
        await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
    if answer.is_success:
        return Redelivered("done")
    if answer.status_code in (401, 403):
        raise who.refused(url_of(http), answer.status_code, answer.content, answer.headers)
    return Redelivered("unknown" if answer.status_code == 503 else "failed", why(answer.status_code, answer.content))


def url_of(http: httpx.AsyncClient) -> str:
    """Where the system is."""
    return str(http.base_url).rstrip("/")


def tell(stored: Stored, came: Redelivered, console: Console, *, as_json: bool) -> None:
    """Show what came of an event: of what was done only for programs, for people the bar moves on."""
    if as_json:
        record: dict[str, Any] = event_of(stored) | {"outcome": came.ending, "why": came.detail or None}
        click.echo(msgspec.json.encode(record))
    elif came.ending != "done":
        colour = "red" if came.ending == "failed" else "yellow"
        console.print(f"{head_of(stored)}  [{colour}]{came.ending}: {escape(came.detail)}[/]", soft_wrap=True)
