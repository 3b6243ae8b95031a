"""The sockets of HTTP: how large the head of a request may be, and how long anybody may take for anything.

uvicorn 0.54 with httptools has no such limits: it takes a head of any size, and waits for one for ever.
"""

from asyncio import TimerHandle, Transport
from collections.abc import Sequence
from http import HTTPStatus
from ipaddress import IPv4Network, ip_network
from weakref import proxy

import msgspec
import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from common.headers import EVERYWHERE, Header
from common.problems import PROBLEM
from common.settings import PREFIX, BadSetting
from common.telemetry import REFUSED

HEAD_BYTES = 32 * 1024
HEADERS = 100
URL_BYTES = 8 * 1024
"""Of a request at most."""

REST_SECONDS = 30.0
REST_BYTES = 200_000_000
"""So long, and so much at most, the rest of a body is read and thrown away that nobody wants. Many a client reads no
answer before it has sent all; closed meanwhile, the connection would be reset by the kernel, and the answer lost."""

LINGER_SECONDS = 2.0
"""So long whoever is refused may go on: cut at once, they might lose the answer."""

log = structlog.get_logger()


class Door(HttpToolsProtocol):
    """A connection, from the first byte of its requests to the last of its answers."""

    sockets = 10_000
    """Connections of a process at most, of all kinds."""

    head_seconds = 10.0
    """From the first to the last byte of a head, and until the first when somebody has connected."""

    body_seconds = 150.0
    """Without a byte of a body, while it is waited for. Longer than the silence that an upload may have."""

    slow_seconds = 30.0
    """Without taking a byte of an answer."""

    headers_of_all: Sequence[Header] = EVERYWHERE

    _refused = False
    _in_head = _in_body = _came = False
    _fruitless = 0  # bytes since something was complete, or part of a body came
    _unwanted = 0  # bytes that were thrown away
    _wrong: tuple[HTTPStatus, str] | None = None
    _watch: TimerHandle | None = None
    _watched = ""  # what the watch is for
    _slow_watch: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._to_answer = ToAnswer(proxy(self))
        if len(self.connections) > self.sockets:
            detail = f"All {self.sockets:,} connections that there may be here are taken; try again."
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, detail)
        else:
            self._watch_for("head", self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch_for("")
        if self._slow_watch:
            self._slow_watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._watched in ("rest", "end"):
            self._unwanted += len(data)
            if self._unwanted > REST_BYTES:
                self.transport.close()
        if self._refused or self.transport.is_closing():
            return
        self._came = True
        self._fruitless += len(data)
        super().data_received(data)
        self._wait_for_more()

    def _wait_for_more(self) -> None:
        if self._refused:
            return
        if self._fruitless > HEAD_BYTES:
            self._refuse(*TOO_LARGE)
        elif self._in_body:
            if self._watched != "rest":
                self._watch_for("body", self.body_seconds)
        elif self._in_head or not (self._is_answering or self.timeout_keep_alive_task):
            self._watch_for("head", self.head_seconds)
        else:
            self._watch_for("")

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # What the parser finds; what one of these raises is told by `send_400_response`

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > URL_BYTES:
            self._wrong = HTTPStatus.REQUEST_URI_TOO_LONG, f"An address may have {URL_BYTES:,} bytes."
            raise ValueError

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # a trailer, which nobody asks for: the request is already being answered
        if len(self.headers) >= HEADERS:
            self._wrong = TOO_LARGE
            raise ValueError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._fruitless > HEAD_BYTES:  # or came at once with a body
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > HEAD_BYTES:
                self._wrong = TOO_LARGE
                raise ValueError
        self._in_head, self._in_body, self._fruitless = False, True, 0
        super().on_headers_complete()
        if self.cycle is not None:  # there is none for a WebSocket
            self.cycle.transport = self._to_answer

    def on_body(self, body: bytes) -> None:
        self._came, self._fruitless = True, 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._fruitless = False, 0
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._watch_for("")
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        if getattr(protocol, "handshake_initiated", True):
            self._refused = True  # nothing more comes here
        else:  # it would wait for ever, and so would they
            self._in_body = False
            self._refuse(
                HTTPStatus.BAD_REQUEST, "This is no request for a WebSocket: it has a body, or a line too long."
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._refused:
            self._unset_keepalive_if_required()
        elif self._in_body:
            self._unwanted = 0
            self._watch_for("rest", REST_SECONDS)
        if self.transport.get_write_buffer_size():
            self._watch_writing()

    # Time

    def _watch_for(self, what: str, seconds: float = 0) -> None:
        if what == self._watched:
            return
        if self._watch:
            self._watch.cancel()
        self._watched = what
        self._watch = self.loop.call_later(seconds, self._time_is_over) if what else None

    def _time_is_over(self) -> None:
        watched, self._watched, self._watch = self._watched, "", None
        if watched == "body" and (self._came or self.flow.read_paused):
            self._came = False
            self._watch_for("body", self.body_seconds)
        elif watched == "body":
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"No more of the body came for {self.body_seconds:.0f} s.")
        elif watched == "head" and (self._in_head or self._fruitless):
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"The head of the request took over {self.head_seconds:.0f} s.")
        else:  # nobody asked for anything
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def _watch_writing(self) -> None:
        if self._slow_watch is None:
            left = self.transport.get_write_buffer_size()
            self._slow_watch = self.loop.call_later(self.slow_seconds, self._look_at_writing, left)

    def _look_at_writing(self, before: int) -> None:
        self._slow_watch = None
        left = self.transport.get_write_buffer_size()
        if left and left >= before:
            log.info("slow_reader_closed", path=self.scope.get("path"))
            self.transport.abort()
        elif left:
            self._watch_writing()

    # Refusing

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (uvicorn has the same for all)
        status, detail = self._wrong or (HTTPStatus.BAD_REQUEST, "This is no request as HTTP/1.1 has it.")
        self._refuse(status, detail)

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Say no to what is being received, and hear no more; what was asked before is still answered."""
        REFUSED.labels(status.value).inc()
        self._refused = True
        self._watch_for("")
        self._unset_keepalive_if_required()
        if self._is_answering and not self._in_body:
            self.cycle.keep_alive = False
            return
        answered = False
        if self._in_body and self.cycle is not None:  # there is none for what would be a WebSocket
            answered = bool(not self._is_answering or self.cycle.response_started or self.pipeline)
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not answered:
            self.transport.write(self._answer(status, detail))
        self._hear_out(LINGER_SECONDS)

    def close(self) -> None:
        """Close after the last answer, as soon as what still comes of a request was heard."""
        if self._in_body or self._refused:
            self._hear_out(REST_SECONDS)
        else:
            self.transport.close()

    def _hear_out(self, seconds: float) -> None:
        """Say nothing more, and throw away what comes, until they close too or time is over."""
        if self._watched == "end" or self.transport.is_closing():
            return
        self._refused = True
        self.pipeline.clear()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._watch_for("end", seconds)
        if self.transport.get_write_buffer_size():
            self._watch_writing()

    def _answer(self, status: HTTPStatus, detail: str) -> bytes:
        body = msgspec.json.encode({"status": status, "title": status.phrase, "detail": detail})
        headers = [
            *self.server_state.default_headers,
            *self.headers_of_all,
            (b"content-type", PROBLEM.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *([(b"retry-after", b"1")] if status == HTTPStatus.SERVICE_UNAVAILABLE else []),
        ]
        return STATUS_LINE[status] + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n" + body


class ToAnswer(Transport):
    """The connection as uvicorn's answers have it, which close it at once when it is not to be kept."""

    def __init__(self, door: Door) -> None:
        """`door`: weakly, as it keeps its answers: a circle would stay until garbage is collected, which is rare."""
        super().__init__()
        self._door = door

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._door.transport.write(data)

    def is_closing(self) -> bool:
        return self._door.transport.is_closing()

    def close(self) -> None:
        self._door.close()


TOO_LARGE = (
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"The head of a request may have {HEADERS} headers and {HEAD_BYTES:,} bytes.",
)


def proxies(text: str) -> list[str]:
    """The addresses and networks of `trusted_proxies`, also as a socket of IPv6 shows them. Raises BadSetting."""
    found = []
    for each in filter(None, map(str.strip, text.split(","))):
        try:
            network = ip_network(each, strict=False)
        except ValueError as error:
            variable = f"{PREFIX}TRUSTED_PROXIES"
            raise BadSetting(f"{variable}={text!r}: {error}; name addresses or networks, as 10.0.0.0/8") from error
        found.append(str(network))
        if isinstance(network, IPv4Network):
            found.append(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
    return found
