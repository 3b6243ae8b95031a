"""Many commands in one request: what is asked of the service that owns a thing, and its answer to each command."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Annotated, TypeVar
from uuid import UUID

import msgspec
import structlog
from msgspec import Meta

from common.auth import UserId
from common.errors import DomainError, Unavailable
from common.requests import understood
from common.telemetry import Cause, cause, current_cause

P = TypeVar("P", bound=msgspec.Struct)  # payloads

COMMANDS_LIMIT = 500
SIZE_LIMIT = 512 * 1024
"""Bytes of payload in one request at most, unless it is a single command; NATS takes 1 MB."""

log = structlog.get_logger()


class Command(msgspec.Struct, frozen=True):
    """What one user wants done. `operation_id` is the same at every try, so that it is done once."""

    operation_id: UUID
    user_id: UserId
    payload: msgspec.Raw


class Chunk(msgspec.Struct, frozen=True):
    """Commands that do not depend on each other: they are done side by side."""

    commands: Annotated[list[Command], Meta(min_length=1, max_length=COMMANDS_LIMIT)]


class Done(msgspec.Struct, frozen=True, tag="done"):
    """It is done, now or by an earlier try. `id`: of what it was done to."""

    id: UUID


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """It cannot be done; `reason` is for whoever wanted it."""

    reason: str


class TryAgain(msgspec.Struct, frozen=True, tag="try_again"):
    """It could not be done now; `reason` says why."""

    reason: str


class Verdicts(msgspec.Struct, frozen=True):
    """What became of the commands of a chunk, in their order."""

    verdicts: list[Done | Refused | TryAgain]


def chunks(commands: Sequence[Command]) -> Iterator[Chunk]:
    """Commands in chunks that one request takes."""
    chunk: list[Command] = []
    size = 0
    for command in commands:
        length = len(command.payload)
        if chunk and (len(chunk) == COMMANDS_LIMIT or size + length > SIZE_LIMIT):
            yield Chunk(chunk)
            chunk, size = [], 0
        chunk.append(command)
        size += length
    if chunk:
        yield Chunk(chunk)


async def each(chunk: Chunk, payload: type[P], do: Callable[[Command, P], Awaitable[UUID]]) -> Verdicts:
    """Do all commands of a chunk side by side. What `do` raises is the verdict on that command alone."""
    return Verdicts(list(await asyncio.gather(*(_one(command, payload, do) for command in chunk.commands))))


async def _one(
    command: Command, payload: type[P], do: Callable[[Command, P], Awaitable[UUID]]
) -> Done | Refused | TryAgain:
    asked = current_cause()
    cause.set(Cause(asked.correlation_id, str(command.operation_id), asked.traceparent))
    try:
        return Done(await do(command, understood(command.payload, payload, "the payload")))
    except Unavailable as error:
        return TryAgain(error.detail)
    except DomainError as error:
        return Refused(error.detail)
    except Exception:
        log.exception("command_failed", operation_id=str(command.operation_id))
        return TryAgain("This is our mistake; it was logged under the operation's id.")
