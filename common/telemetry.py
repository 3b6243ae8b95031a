"""What is told about the running system: causes, logs, metrics."""

import logging
import sys
from contextvars import ContextVar
from typing import Self

import msgspec
import structlog
import structlog.stdlib
import structlog.tracebacks
from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics
from structlog.typing import EventDict, Processor, WrappedLogger

from common.clock import new_id_text


class Cause(msgspec.Struct, frozen=True):
    """Why something happens: the conversation it belongs to, and the event or request that led to it.

    `traceparent` is the W3C trace context of that request, passed on as it came.
    """

    correlation_id: str
    causation_id: str
    traceparent: str | None = None

    @classmethod
    def new(cls) -> Self:
        """A cause for what nobody asked for: it starts a conversation of its own."""
        origin = new_id_text()
        return cls(origin, origin)


cause: ContextVar[Cause | None] = ContextVar("cause", default=None)
"""The cause of what this task does. The HTTP door and the listener set it, `Draft` reads it."""


service: ContextVar[str] = ContextVar("service", default="")
"""Which service does what this task does. A process may have several."""

heard: ContextVar[str] = ContextVar("heard", default="")
"""The id of the event that this task has heard, if that is why it does something."""


def current_cause() -> Cause:
    """The cause of what this task does, or a new one."""
    return cause.get() or Cause.new()


BUILD = Gauge("boxoffice_build_info", "1 for each service in this process", ["version", "service"])
REQUESTS = Histogram("boxoffice_http_request_seconds", "HTTP requests", ["method", "route", "status"])
LIMITED = Counter("boxoffice_limited_requests_total", "Requests over a rate limit, by which", ["of", "by"])
REFUSED = Counter("boxoffice_refused_requests_total", "Requests refused before they were looked at", ["status"])
OPEN = Gauge("boxoffice_open_connections", "Connections that stay open, by how events get there", ["transport"])
APPENDED = Counter("boxoffice_events_appended_total", "Events appended to the log", ["stream"])
CONFLICTS = Counter("boxoffice_append_conflicts_total", "Appends that lost the race for a sequence", ["aggregate"])
IN_DOUBT = Counter("boxoffice_appends_in_doubt_total", "Appends whose outcome had to be looked up", ["stream"])
HANDLED = Counter("boxoffice_listener_events_total", "Events by what a listener did with them", ["listener", "outcome"])
DEAD_LETTERS = Counter("boxoffice_dead_letters_total", "Events given up on", ["listener"])
PROJECTED = Counter("boxoffice_projected_events_total", "Events written to a read model", ["projection", "stream"])
WEBHOOK_ATTEMPTS = Counter("boxoffice_webhook_attempts_total", "Posts to webhooks by how they ended", ["outcome"])
WEBHOOKS_PARKED = Counter("boxoffice_webhooks_parked_total", "Posts to webhooks that are not tried again", ["reason"])
SPANS = Counter("boxoffice_spans_total", "Spans of traces, by whether the collector took them", ["outcome"])
LATENESS = Histogram(
    "boxoffice_expiry_lateness_seconds",
    "How long after its deadline an expiration was published",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30, 300, 3600),
)


# Never the local variables: they hold what people sent us.
BRIEF_TRACEBACKS = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)

disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client types most of itself


def _add_cause(_logger: WrappedLogger, _method: str, entry: EventDict) -> EventDict:
    if name := service.get():
        entry.setdefault("service", name)
    if current := cause.get():
        entry.setdefault("correlation_id", current.correlation_id)
        entry.setdefault("causation_id", current.causation_id)
        if current.traceparent and current.traceparent.count("-") >= 3:
            _, trace_id, span_id, *_ = current.traceparent.split("-")
            entry.setdefault("trace_id", trace_id)
            entry.setdefault("span_id", span_id)
    if event_id := heard.get():
        entry.setdefault("event_id", event_id)
    return entry


def configure_logging(level: str = "info", *, human: bool | None = None) -> None:
    """Log to stderr: as lines for people on a terminal (or when `human`), as JSON elsewhere."""
    if human is None:
        human = sys.stderr.isatty()
    brief = structlog.processors.ExceptionRenderer(BRIEF_TRACEBACKS)
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_cause,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ends: list[Processor] = [console] if human else [brief, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*common, *ends],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # What libraries log, in the same form.
    libraries = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *common],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ends],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(libraries)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # It warns of everything that is no HTTP, so that anybody could fill the log; `REFUSED` counts them.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
