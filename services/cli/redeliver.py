"""Past events delivered to a listener of the running system once more, over HTTP, at a bounded rate."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any, Literal, get_args

import httpx
import msgspec
from rich.markup import escape

from common.errors import Unavailable
from common.event_log import Stored
from common.progress import Progress
from common.rehearsal import Rehearsal
from common.runtime import connect
from common.settings import Settings
from services.cli.dead_letters import PATIENCE, UNKNOWN
from services.cli.rehearse import Selection, event_of, head_of
from services.cli.system import rehearsed
from services.cli.who import Who, why

Ending = Literal["done", "failed", "unknown"]


class Redelivered(msgspec.Struct, frozen=True):
    """What came of an event; `detail` says why it is not done."""

    ending: Ending
    detail: str = ""


class Redelivery:
    """Events that a listener of the system at `url` hears again, `rate` of them a second at most, and how far it came.

    `say` is told each with what came of it. `goes_on`: the sequence from which to go on, if it ended too early.
    """

    def __init__(self, url: str, who: Who, rate: float, say: Callable[[Stored, Redelivered], None]) -> None:
        self.endings: Counter[Ending] = Counter()
        self.goes_on = 0
        self._url = url
        self._who = who
        self._rate = rate
        self._say = say

    async def run(self, name: str, selection: Selection, settings: Settings, progress: Progress) -> bool:
        """Have listener `name` hear each of these events; whether all of it was done.

        Raises Invalid, Refusal, Unavailable when nobody answers.
        """
        due, loop = 0.0, asyncio.get_running_loop()
        async with (
            connect(settings, "redelivery") as platform,
            httpx.AsyncClient(base_url=self._url, timeout=PATIENCE) as http,
        ):
            listener = rehearsed(name, Rehearsal(platform.event_log))  # to know what it hears
            async with aclosing(selection.of(platform.event_log, listener, progress)) as events:
                async for stored in events:
                    await asyncio.sleep(max(0, due - loop.time()))
                    due, self.goes_on = loop.time() + 1 / self._rate, stored.sequence
                    came = await deliver(http, name, stored, self._who)
                    self.goes_on += 1
                    self.endings[came.ending] += 1
                    self._say(stored, came)
        self.goes_on = 0
        return self.endings["done"] == self.endings.total()

    def told(self, name: str) -> Iterator[str]:
        """How far it came, for people."""
        counted = ", ".join(f"{self.endings[ending]:,} {ending}" for ending in get_args(Ending))
        yield f"[bold]{name}[/] heard {self.endings.total():,} again: {counted}"
        if self.goes_on:
            yield f"It stopped before its end. To go on: --since {self.goes_on}"


async def deliver(http: httpx.AsyncClient, name: str, stored: Stored, who: Who) -> Redelivered:
    """Have one event delivered, as soon as the system lets us. Raises Refusal, Unavailable."""
    what = {"listener": name, "stream": stored.stream, "sequence": stored.sequence}
    url = str(http.base_url).rstrip("/")
    while True:
        try:
            answer = await http.post("/api/events/redeliveries", json=what, headers=who.headers)
        except httpx.ConnectError as error:
            raise Unavailable(f"{url} does not answer ({type(error).__name__}). Is it running?") from error
        except httpx.TransportError as error:
            return Redelivered("unknown", f"no answer ({type(error).__name__})")
        if answer.status_code != 429:
            break
        await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
    if answer.is_success:
        return Redelivered("done")
    if answer.status_code in (401, 403):
        raise who.refused(url, answer.status_code, answer.content, answer.headers)
    return Redelivered(
        "unknown" if answer.status_code in UNKNOWN else "failed", why(answer.status_code, answer.content)
    )


def lines_of(stored: Stored, came: Redelivered) -> Iterator[str]:
    """What came of an event that is not done; for the others the bar moves on."""
    if came.ending != "done":
        colour = "red" if came.ending == "failed" else "yellow"
        yield f"{head_of(stored)}  [{colour}]{came.ending}: {escape(came.detail)}[/]"


def record_of(stored: Stored, came: Redelivered) -> dict[str, Any]:
    """What came of an event, for programs."""
    return event_of(stored) | {"outcome": came.ending, "why": came.detail or None}
