"""A collector of traces: it takes what OTLP over HTTP brings, and shows it."""

import gzip
from collections.abc import Callable
from typing import Any, Self

import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.harness import eventually
from tests.receiver import Receiver


class Seen(msgspec.Struct, frozen=True):
    """A span as it came. Times are nanoseconds; `service` is what its resource says."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    links: tuple[tuple[str, str], ...]
    began: int
    ended: int
    told: dict[str, Any]
    failed: bool
    resource: dict[str, Any]


class Collector:
    """Listens on a port of loopback."""

    def __init__(self) -> None:
        self.receiver = Receiver(lambda _: "200 OK\r\nContent-Type: application/x-protobuf\r\n\r\n")

    async def __aenter__(self) -> Self:
        await self.receiver.__aenter__()
        self.url = f"http://127.0.0.1:{self.receiver.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.receiver.__aexit__()

    @property
    def spans(self) -> list[Seen]:
        """All that came."""
        return [span for post in self.receiver.posts for span in spans_in(gzip.decompress(post.body))]

    def of(self, trace: str) -> list[Seen]:
        """Those of one trace."""
        return [span for span in self.spans if span.trace == trace]

    async def has(self, complete: Callable[[list[Seen]], bool], within: float = 30) -> list[Seen]:
        """Wait until what came is complete. Raises AssertionError."""

        async def look() -> bool:
            return complete(self.spans)

        try:
            await eventually(look, True, within)
        except AssertionError as error:
            raise AssertionError(f"there are only {sorted({(s.service, s.name) for s in self.spans})}") from error
        return self.spans


def spans_in(body: bytes) -> list[Seen]:
    """The spans of one message."""
    request = ExportTraceServiceRequest.FromString(body)
    found = []
    for group in request.resource_spans:
        resource = attributes(group.resource.attributes)
        for scope in group.scope_spans:
            found += [
                Seen(
                    service=resource["service.name"],
                    name=span.name,
                    kind=span.kind,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    began=span.start_time_unix_nano,
                    ended=span.end_time_unix_nano,
                    told=attributes(span.attributes),
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    resource=resource,
                )
                for span in scope.spans
            ]
    return found


def attributes(pairs: Any) -> dict[str, Any]:
    """What stands in them, as Python has it."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
