"""Spans of OpenTelemetry, sent to a collector by OTLP over HTTP. Imported only where there is one."""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Token
from importlib.metadata import version
from typing import Self

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, get_current_span
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import Tracer as OtelTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common.errors import DomainError, Retry, Unavailable
from common.settings import without_password
from common.telemetry import SPANS, Cause, cause
from common.tracing import FROM_CAUSE, LINKS, Kind, Told

FLUSH_SECONDS = 3.0
"""How long a process that stops waits for the collector to take the last spans."""

EXPORT_SECONDS = 5.0
"""How long the collector is given to take some spans, tries again included."""

QUEUED = 8_192
"""Spans that wait for the collector at most: 25 MB. What is more is dropped, the oldest first."""

INTERVAL_MS = 1_000
"""How often what has ended is sent."""

LIMITS = SpanLimits(max_span_attributes=16, max_span_attribute_length=200, max_links=LINKS, max_events=0)

KINDS: dict[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}

TRACE_CONTEXT = TraceContextTextMapPropagator()

log = structlog.get_logger()


def context_of(traceparent: str | None) -> Context:
    """The parent that a traceparent names; none for what is no traceparent."""
    return TRACE_CONTEXT.extract({"traceparent": traceparent} if traceparent else {}, Context())


class _Span:
    """One of OpenTelemetry, as the cause of what is done in it."""

    def __init__(self, made: OtelSpan) -> None:
        self._made = made
        self._before: Token[Cause | None] | None = None
        self.recording = made.is_recording()

    def name(self, name: str) -> None:
        self._made.update_name(name)

    def tell(self, key: str, value: str | int | float | bool) -> None:
        self._made.set_attribute(key, value)

    def fail(self, why: str) -> None:
        self._made.set_attribute("error.type", why)
        self._made.set_status(Status(StatusCode.ERROR))

    def __enter__(self) -> Self:
        at = self._made.get_span_context()
        traceparent = f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}"
        now = cause.get() or Cause.new()
        self._before = cause.set(Cause(now.correlation_id, now.causation_id, traceparent))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._before is not None:
            cause.reset(self._before)
        if kind is not None and self.recording:
            # Of an error its kind alone: what it says may quote what people sent us.
            self._made.set_attribute("error.type", kind.__name__)
            refused = issubclass(kind, DomainError) and not issubclass(kind, Unavailable)
            if not refused and not issubclass(kind, (Retry, asyncio.CancelledError)):
                self._made.set_status(Status(StatusCode.ERROR))
        self._made.end()


class _Tracer:
    def __init__(self, tracer: OtelTracer) -> None:
        self._tracer = tracer

    def begin(
        self, name: str, kind: Kind, told: Told, traceparent: str | None, links: Iterable[str], since: int
    ) -> _Span:
        if traceparent is FROM_CAUSE:
            current = cause.get()
            traceparent = current.traceparent if current else None
        linked = []
        for other in links:
            at = get_current_span(context_of(other)).get_span_context()
            if at.is_valid:
                linked.append(Link(at))
        made = self._tracer.start_span(
            name,
            context_of(traceparent),
            KINDS[kind],
            told,
            linked,
            since or None,
        )
        return _Span(made)


class _Tracers:
    def __init__(self, processor: BatchSpanProcessor, sampler: Sampler) -> None:
        self._processor = processor
        self._sampler = sampler
        self._made: dict[str, _Tracer] = {}

    def of(self, service: str) -> _Tracer:
        if service not in self._made:
            release = version("boxoffice")
            resource = Resource.create(
                {
                    "service.namespace": "boxoffice",
                    "service.name": f"boxoffice-{service}",
                    "service.version": release,
                    "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
                }
            )
            provider = TracerProvider(self._sampler, resource, shutdown_on_exit=False, span_limits=LIMITS)
            provider.add_span_processor(self._processor)  # one for all, so that there is one queue and one thread
            self._made[service] = _Tracer(provider.get_tracer("boxoffice", release))
        return self._made[service]


class _Telling(SpanExporter):
    """Says once that the collector takes no spans, and once that it does again. OpenTelemetry says it each time."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._away = False
        self._exporter = OTLPSpanExporter(
            endpoint.rstrip("/") + "/v1/traces", timeout=EXPORT_SECONDS, compression=Compression.Gzip
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        away = result is not SpanExportResult.SUCCESS
        SPANS.labels("lost" if away else "exported").inc(len(spans))
        if away != self._away:
            self._away = away
            where = without_password(self._endpoint)
            if away:
                mend = "correct BOXOFFICE_OTLP_ENDPOINT, or look at the collector; spans are lost until then"
                log.warning("collector_away", endpoint=where, mend=mend)
            else:
                log.info("collector_back", endpoint=where)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # OpenTelemetry forgot


@asynccontextmanager
async def exported(endpoint: str, ratio: float) -> AsyncIterator[_Tracers]:
    """Who makes spans that are sent to the collector at `endpoint`: of a trace that begins here, `ratio` of them."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # `_Telling` says it, once
    exporter = _Telling(endpoint)
    processor = BatchSpanProcessor(exporter, max_queue_size=QUEUED, schedule_delay_millis=INTERVAL_MS)
    try:
        yield _Tracers(processor, ParentBased(TraceIdRatioBased(ratio)))
    finally:
        if not await done_within(FLUSH_SECONDS, processor.shutdown):
            exporter.shutdown()  # ends its waiting to try again
            log.warning("last_spans_lost", endpoint=without_password(endpoint), seconds=FLUSH_SECONDS)


async def done_within(seconds: float, work: Callable[[], object]) -> bool:
    """Do blocking work in a thread of its own that holds up nobody's end; whether it was done in so many seconds."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        with suppress(Exception):  # OpenTelemetry's; nobody waits any more for what it would be
            work()
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, daemon=True).start()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await done.wait()
    return done.is_set()
