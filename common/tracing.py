"""What leads to what, and how long it takes, as spans: for whoever collects traces. Without a collector, nothing.

The W3C trace context (`traceparent`) travels in causes, and so in the headers of events and requests, also where no
spans are made. What makes spans of OpenTelemetry is in `otlp.py`, which is imported only when they are to be made.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Literal, Protocol, Self

from common.settings import Settings
from common.telemetry import service

Kind = Literal["internal", "server", "client", "producer", "consumer"]
"""What OpenTelemetry tells spans apart by."""

Told = Mapping[str, str | int | float | bool]
"""Attributes by name, as OpenTelemetry's semantic conventions have them; `boxoffice.` is ours."""

NOTHING_TOLD: Told = {}

LINKS = 32
"""A span that is of many events names so many of their traces at most."""


class Span(Protocol):
    """Something that takes time. As long as it is entered, it is what the cause of this task names as its parent."""

    recording: bool
    """Whether anybody will see it: if not, what is costly to tell need not be told."""

    def name(self, name: str) -> None:
        """Call it otherwise, now that more is known."""

    def tell(self, key: str, value: str | int | float | bool) -> None:
        """Say more of it. Nothing personal, no secret, no content; of what there are many, an id at most."""

    def fail(self, why: str) -> None:
        """It did not do what it should: `why` in a word."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None: ...


class Tracer(Protocol):
    """Makes the spans of one service."""

    def begin(
        self, name: str, kind: Kind, told: Told, traceparent: str | None, links: Iterable[str], since: int
    ) -> Span:
        """A span that began at `since`, in nanoseconds of Unix time, or begins now (0)."""


class Tracers(Protocol):
    """Knows who makes the spans of each service in this process."""

    def of(self, service: str) -> Tracer:
        """Who makes those of that service."""


class _Nothing:
    """The span where none are made: one for all, as there is nothing to be known of it."""

    recording = False

    def name(self, name: str) -> None: ...

    def tell(self, key: str, value: str | int | float | bool) -> None: ...

    def fail(self, why: str) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


NOTHING: Span = _Nothing()

tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
"""Who makes spans of what this task does; None: nobody."""


def is_seen(traceparent: str) -> bool:
    """Whether a trace is one that is collected, by the flag that says so."""
    return traceparent[-1:] in "13579bdf" and traceparent != ""


FROM_CAUSE = "the cause of this task"


def span(
    name: str,
    kind: Kind = "internal",
    told: Told = NOTHING_TOLD,
    *,
    traceparent: str | None = FROM_CAUSE,
    links: Iterable[str] = (),
    since: int = 0,
) -> Span:
    """A span, to be entered. It is part of what the cause of this task names, or of the `traceparent` given.

    `told` are its attributes. `links`: traceparents of what else it is of. `since`: when it began, in nanoseconds of
    Unix time, if not now.
    """
    maker = tracer.get()
    return NOTHING if maker is None else maker.begin(name, kind, told, traceparent, links, since)


class acting_as:  # noqa: N801 (it is called like a function)
    """What happens in here, and in tasks that begin in here, is done by the service of that name.

    A class, as a generator would take twice as long (0.6 us, 1.2), for every request.
    """

    __slots__ = ("_before", "_name", "_tracers")

    def __init__(self, name: str, tracers: Tracers | None) -> None:
        self._name = name
        self._tracers = tracers

    def __enter__(self) -> None:
        self._before = service.set(self._name), tracer.set(self._tracers.of(self._name) if self._tracers else None)

    def __exit__(self, *_: object) -> None:
        acting, making = self._before
        tracer.reset(making)
        service.reset(acting)


@asynccontextmanager
async def collecting(settings: Settings) -> AsyncIterator[Tracers | None]:
    """Who makes spans in this process and sends them to the collector; None where there is none.

    On leaving what was not sent yet is sent, within `otlp.FLUSH_SECONDS`.
    """
    if not settings.otlp_endpoint:
        yield None
        return
    from common.otlp import exported  # here, so that whoever has no collector has no SDK either

    async with exported(settings.otlp_endpoint, settings.trace_ratio) as tracers:
        yield tracers
