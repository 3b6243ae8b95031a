"""Processes that render documents, so that a template which loops or grows harms nobody: it is stopped, and told."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from typing import Any, Literal, Self

import msgspec

from common.errors import Unavailable
from common.settings import PREFIX

START_SECONDS = 30.0

Format = Literal["html", "pdf"]


class BadTemplate(Exception):
    """A template cannot be used, at all or with this data: where (line from 1, if that is known) and why."""

    def __init__(self, line: int | None, reason: str) -> None:
        # It may quote what somebody wrote, and goes where control characters and half characters cannot.
        self.reason = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in reason[:300])
        self.line = line
        super().__init__(f"line {line}: {self.reason}" if line else self.reason)


class Job(msgspec.Struct, frozen=True):
    """What a rendering process is asked: a document of `data`, or without it whether there can be any."""

    form: Format
    body: str
    data: dict[str, Any] | None = None


class Failure(msgspec.Struct, frozen=True):
    """A BadTemplate on its way."""

    line: int | None
    reason: str


HEAD = 5
"""Bytes before each message: how long it is (4), and of an answer whether it is a document (0) or a Failure (1)."""


def head_of(message: bytes, *, failed: bool = False) -> bytes:
    return len(message).to_bytes(4) + failed.to_bytes(1)


class Renderers:
    """A few processes that render one document at a time each; started when needed, used again, replaced when killed.

    They end with the process that started them, at the latest.
    """

    def __init__(self, processes: int = 2, *, computing: float = 2.0, seconds: float = 10.0) -> None:
        """`computing`: seconds of it for one document; `seconds`: after which its process is killed all the same."""
        self._free = asyncio.Semaphore(processes)
        self._idle: list[Process] = []
        self._computing = computing
        self._seconds = seconds

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the idle processes."""
        while self._idle:
            await end(self._idle.pop())

    async def check(self, form: Format, body: str) -> None:
        """Raises BadTemplate for a template that cannot become any document; Unavailable."""
        await self._ask(Job(form, body))

    async def render(self, form: Format, body: str, data: Mapping[str, Any]) -> bytes:
        """The document that a template makes of `data`. Raises BadTemplate, Unavailable."""
        return await self._ask(Job(form, body, dict(data)))

    async def _ask(self, job: Job) -> bytes:
        message = msgspec.json.encode(job)
        async with self._free:
            failed, answer = await self._answer(message)
        if failed:
            failure = msgspec.json.decode(answer, type=Failure)
            raise BadTemplate(failure.line, failure.reason)
        return answer

    async def _answer(self, message: bytes) -> tuple[bool, bytes]:
        """What a process answers: whether it failed, and the rest. Raises BadTemplate, Unavailable."""
        process = self._idle.pop() if self._idle else None
        used, process = process is not None, process or await start(self._computing)
        try:
            async with asyncio.timeout(self._seconds):
                answer = await exchange(process, message)
        except TimeoutError:
            await end(process)
            raise BadTemplate(None, f"it takes more than {self._seconds:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            await end(process)
            if used:  # it may have died before
                return await self._answer(message)
            raise BadTemplate(None, "it broke the process that rendered it") from None
        except BaseException:  # cancelled: nobody waits for the document
            await end(process)
            raise
        self._idle.append(process)
        return answer


async def start(computing: float) -> Process:
    """A rendering process, ready. Raises Unavailable."""
    unsecret = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.batch.documents", str(computing)), stdin=PIPE, stdout=PIPE, env=unsecret
        )
    except OSError as error:
        raise Unavailable(f"No process to render documents could be started: {error}") from error
    try:
        async with asyncio.timeout(START_SECONDS):
            await receive(process)
    except (TimeoutError, asyncio.IncompleteReadError) as error:
        await end(process)
        raise Unavailable("The process to render documents did not start.") from error
    except BaseException:
        await end(process)
        raise
    return process


async def exchange(process: Process, message: bytes) -> tuple[bool, bytes]:
    """Ask, and hear whether it failed and the answer. Raises IncompleteReadError, ConnectionError when it dies."""
    assert process.stdin
    process.stdin.write(head_of(message) + message)
    await process.stdin.drain()
    return await receive(process)


async def receive(process: Process) -> tuple[bool, bytes]:
    assert process.stdout
    head = await process.stdout.readexactly(HEAD)
    return bool(head[4]), await process.stdout.readexactly(int.from_bytes(head[:4]))


async def end(process: Process) -> None:
    """Kill it; it has nothing to lose."""
    if process.returncode is None:
        process.kill()
    await process.wait()
