"""Dead letters over HTTP, for the command line: what they say, and what becomes of them when they are retried."""

import asyncio
import difflib
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from common.errors import Invalid, Unavailable
from services.cli.base import progress_bars
from services.cli.batch import told
from services.cli.who import Refusal, Who, why

COLOURS = {"open": "yellow", "done": "green", "dropped": "dim"}
PATIENCE = 60.0
"""Seconds that an answer may take: a listener has 10 for its deed."""
ERRORS_SHOWN = 20
UNKNOWN = (502, 503, 504)
"""Answers after which nobody knows what became of a retry."""


class DeadLetters:
    """The dead letters of the system at one address."""

    def __init__(self, http: httpx.AsyncClient, console: Console) -> None:
        self._http = http
        self._console = console

    async def groups(self, listener: str | None, error: str | None, *, every: bool) -> list[dict[str, Any]]:
        """Those with the newest letter first."""
        found: Any = told(await self._get("/api/events/dead/groups", wanted(listener, error, every=every)))
        return list(found)

    async def letters(self, listener: str | None, error: str | None, *, every: bool) -> list[dict[str, Any]]:
        """All that fit, oldest first."""
        found: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            page = told(await self._get("/api/events/dead", wanted(listener, error, every=every) | cursor))
            found += page["items"]
            if page["next_cursor"] is None:
                return found[::-1]
            cursor = {"cursor": page["next_cursor"]}

    async def chosen(self, listener: str | None, error: str | None) -> list[int]:
        """The numbers of those that fit and are open, oldest first."""
        return [letter["number"] for letter in await self.letters(listener, error, every=False)]

    async def read(self, number: int) -> dict[str, Any]:
        """One dead letter. Raises Refusal."""
        return told(await self._get(f"/api/events/dead/{number}", {}))

    async def read_open(self, number: int) -> dict[str, Any]:
        """One that something can be done about. Raises Refusal."""
        letter = await self.read(number)
        if letter["state"] != "open":
            raise Refusal(f"Dead letter {number} {'was' if letter['state'] == 'dropped' else 'is'} {letter['state']}.")
        return letter

    async def edit(self, before: Mapping[str, Any], text: str) -> None:
        """Correct what a letter says, and show in what that differs. Raises Invalid, Refusal."""
        try:
            now = json.loads(text)
        except ValueError as error:
            raise Invalid(f"The payload is not JSON: {error}") from error
        path, headers = f"/api/events/dead/{before['number']}/body", {"Content-Type": "application/json"}
        told(await self._patiently("PUT", path, content=text.encode(), headers=headers))
        self._differences(payload_of(before), now)
        self._console.print(f"dead letter {before['number']} is corrected")

    async def retry(self, numbers: Sequence[int], rate: float) -> bool:
        """Retry them one after the other, `rate` a second at most; whether all of them are done."""
        return await self._act_on(numbers, "retry", {"done": "done", "failed": "failed"}, rate)

    async def drop(self, numbers: Sequence[int]) -> bool:
        """Drop them; whether that was done with all of them."""
        return await self._act_on(numbers, "drop", {"done": "dropped", "failed": "not dropped"}, None)

    async def _act_on(self, numbers: Sequence[int], what: str, ends: Mapping[str, str], rate: float | None) -> bool:
        """Do it with each, show what goes wrong, and in the end (also when it is cut short) what became of how many."""
        if not numbers:
            self._console.print("There are none.")
            return True
        became, loop = Counter[str](), asyncio.get_running_loop()
        due = loop.time()
        try:
            with progress_bars() as progress:
                for number in numbers:
                    progress(what, became.total(), len(numbers))
                    await asyncio.sleep(due - loop.time())
                    due = max(due, loop.time()) + (1 / rate if rate else 0)
                    became["unknown"] += 1  # should this be cut short
                    try:
                        end, reason = await self._act(number, what)
                    except Refusal:  # nothing was done, nor would any other be let in
                        became["unknown"] -= 1
                        raise
                    became["unknown"] -= 1
                    became[end] += 1
                    if end != "done" and became["failed"] + became["unknown"] <= ERRORS_SHOWN:
                        self._console.print(f"[red]{number}[/]: {escape(reason)}", soft_wrap=True)
                progress(what, became.total(), len(numbers))
        finally:
            left = len(numbers) - became.total()
            counts = {"done": ends["done"], "failed": ends["failed"], "unknown": "unknown"}
            parts = [f"{became[end]:,} {name}" for end, name in counts.items()]
            self._console.print(", ".join([*parts, f"{left:,} not tried"] if left else parts))
        return became["done"] == len(numbers)

    async def _act(self, number: int, what: str) -> tuple[str, str]:
        """What became of one, and why if it is not done. Raises httpx.ConnectError when nobody answers there."""
        try:
            answer = await self._patiently("POST", f"/api/events/dead/{number}/{what}")
        except httpx.ConnectError:
            raise
        except httpx.TransportError as error:
            return "unknown", f"no answer ({type(error).__name__})"
        if answer.is_success:
            return "done", ""
        return "unknown" if answer.status_code in UNKNOWN else "failed", why(answer.status_code, answer.content)

    async def _get(self, path: str, params: Mapping[str, str]) -> httpx.Response:
        return await self._patiently("GET", path, params=dict(params))

    async def _patiently(self, method: str, path: str, **more: Any) -> httpx.Response:
        """The answer; who asks too often waits as long as they are told to."""
        while True:
            answer = await self._http.request(method, path, **more)
            if answer.status_code != 429:
                return answer
            await asyncio.sleep(float(answer.headers.get("Retry-After", "1")))

    async def tell_groups(self, listener: str | None, error: str | None, *, every: bool) -> None:
        """Show how many there are of which kind."""
        groups = await self.groups(listener, error, every=every)
        if not groups:
            self._console.print("There are none." if listener or error or every else "Nothing is given up on.")
            return
        line = "{:<30} {:>7} {:>8}  {:<19}  {:<19}  {}"
        titles = line.format("listener", "letters", "newest", "first", "last", "error")
        self._console.print(f"[dim]{titles}[/]", soft_wrap=True)
        for group in groups:
            first, last = group["first"][:19], group["last"][:19]
            count = f"{group['count']:,}"
            text = line.format(group["listener"], count, group["newest"], first, last, brief(group["error"]))
            self._console.print(text, markup=False, soft_wrap=True)

    async def tell_each(self, listener: str | None, error: str | None, *, every: bool) -> None:
        """Show those that fit, a line for each."""
        line = "{:>8}  {:<7}  {:<19}  {:>7}  {:<24} {}"
        titles = line.format("number", "state", "died", "retries", "type", "subject")
        self._console.print(f"\n[dim]{titles}[/]", soft_wrap=True)
        for letter in await self.letters(listener, error, every=every):
            state, died = letter["state"], letter["died_at"][:19]
            text = line.format(letter["number"], state, died, letter["retries"], letter["type"], letter["subject"])
            coloured = escape(text).replace(state, f"[{COLOURS[state]}]{state}[/]", 1)
            self._console.print(coloured, soft_wrap=True)

    def tell(self, letter: Mapping[str, Any]) -> None:
        """Show a dead letter, all of it."""
        number, state = letter["number"], letter["state"]
        say = self._console.print
        say(f"[bold]dead letter {number}[/] [{COLOURS[state]}]{state}[/]", soft_wrap=True)
        times = "once" if letter["attempts"] == 1 else f"{letter['attempts']:,} times"
        lines = {
            "listener": f"{letter['listener']}, which tried {times} and gave up at {letter['died_at'][:19]}",
            "error": letter["error"],
            "event": f"{letter['type']} {letter['event_id']}",
            "place": f"{letter['stream']} {letter['sequence']}, {letter['subject']}, at {letter['appended_at'][:19]}",
        }
        for name, text in lines.items():
            say(f"  [dim]{name:<10}[/] {escape(text)}", soft_wrap=True)
        say("  [dim]headers[/]")
        for name, text in letter["headers"].items():
            say(f"    [dim]{escape(name)}:[/] {escape(text)}", soft_wrap=True)
        say("  [dim]payload[/]")
        self._tell_payload(letter["payload"])
        if letter["correction"] is not None:
            say("  [dim]corrected to[/]")
            self._differences(letter["payload"], letter["correction"])
        for action in letter["actions"]:
            failed = f": {action['error']}" if action["error"] else ""
            say(f"  [dim]{action['at'][:19]}[/] {action['what']} by {escape(action['by'] + failed)}", soft_wrap=True)
        if letter["correlation_id"]:
            say(f"  [dim]what led to it:[/] boxoffice events trace {escape(letter['correlation_id'])}", soft_wrap=True)
        if state == "open":
            say(f"  [dim]then:[/] boxoffice dead retry {number}, edit {number} or drop {number}", soft_wrap=True)

    def _tell_payload(self, payload: Any) -> None:
        if isinstance(payload, str):
            self._console.print(payload, markup=False, soft_wrap=True)
        else:
            self._console.print_json(data=payload)

    def _differences(self, before: Any, now: Any) -> None:
        lines = difflib.unified_diff(pretty(before).splitlines(), pretty(now).splitlines(), lineterm="")
        for line in [*lines][2:]:
            colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[0], "none")
            self._console.print(f"[{colour}]{escape(line)}[/]", soft_wrap=True)


def wanted(listener: str | None, error: str | None, *, every: bool) -> dict[str, str]:
    """Which letters, as query parameters."""
    named = {"listener": listener, "error": error, "state": None if every else "open", "limit": "1000"}
    return {name: value for name, value in named.items() if value is not None}


def payload_of(letter: Mapping[str, Any]) -> Any:
    """What a letter says now, in words of JSON: its correction, if it has one."""
    return letter["payload"] if letter["correction"] is None else letter["correction"]


def pretty(payload: Any) -> str:
    """A payload on many lines; text that is no JSON as it is."""
    return payload if isinstance(payload, str) else json.dumps(payload, indent=2, ensure_ascii=False)


def brief(error: str) -> str:
    """The first line of an error, as much as a line takes."""
    line = error.splitlines()[0] if error else ""
    return line if len(line) <= 200 else line[:197] + "..."


@asynccontextmanager
async def dead_letters_at(url: str, who: Who, console: Console) -> AsyncIterator[DeadLetters]:
    """The dead letters of the system at `url`. Raises Unavailable when nobody answers there, Refusal."""

    async def refuse(answer: httpx.Response) -> None:
        if answer.status_code != 429:  # which is waited for
            await who.refuse(answer)

    hooks = {"response": [refuse]}
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, headers=who.headers, event_hooks=hooks) as http:
        try:
            yield DeadLetters(http, console)
        except httpx.TransportError as error:
            raise Unavailable(f"{url} does not answer ({type(error).__name__}). Is it running?") from error
