"""The published language of requests: what services ask each other over NATS, typed; who asks and who answers.

A request may be handled twice: its answer got lost, or whoever handled it died. So every endpoint is idempotent: the
same question again changes nothing and is answered the same. Ids of what it makes are made from ids in the question.
"""

import asyncio
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER, Request
from nats.micro.service import Endpoint as MicroEndpoint
from nats.micro.service import EndpointConfig, ServiceConfig
from nats.micro.service import Service as MicroService

from common import errors
from common.errors import DomainError, Invalid, Unavailable
from common.explain import explain
from common.telemetry import Cause, cause, current_cause
from common.tracing import Span, span

T = TypeVar("T")
Q = TypeVar("Q", bound=msgspec.Struct)  # questions
A = TypeVar("A", bound=msgspec.Struct)  # answers

KINDS: Mapping[str, type[DomainError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, DomainError)
}
"""The kinds of error by the name under which they cross the wire."""

NOBODY = {"Status": "503"}
"""The header with which the server says that nobody answers a subject. A responder that stops says the same."""

MICRO = {"rpc.system.name": "nats.micro"}
"""What a span says of questions and answers beside the subject that it is called by."""

log = structlog.get_logger()


class Endpoint(msgspec.Struct, Generic[Q, A], frozen=True):
    """Something that a service can be asked: under which name, what the question and what the answer is."""

    service: str
    name: str
    question: type[Q]
    answer: type[A]

    @property
    def subject(self) -> str:
        """Where it is asked; streams take what begins with the name of a service."""
        return f"requests.{self.service}.{self.name}"


class Answering(msgspec.Struct, Generic[Q, A], frozen=True):
    """Who answers an endpoint. What `answer` raises is raised where it was asked, if it is a DomainError."""

    endpoint: Endpoint[Q, A]
    answer: Callable[[Q], Awaitable[A]]


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A DomainError on the wire."""

    kind: str
    detail: str
    context: dict[str, Any] = {}

    @classmethod
    def of(cls, error: DomainError) -> "Failure":
        kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in KINDS)
        return cls(kind, error.detail, error.context)

    def error(self) -> DomainError:
        """The error that it was."""
        if self.kind not in KINDS:
            return Unavailable(f"{self.kind}, which is not known here: {self.detail}")
        return KINDS[self.kind](self.detail, **self.context)


def understood(body: bytes | msgspec.Raw, kind: type[T], what: str) -> T:
    """JSON as the type that it should be. Raises Invalid, which says where in `what` it is not."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        path, message = explain(str(error), kind)
        field = ".".join(path) or what
        raise Invalid(f"{field}: {message}", field=field) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"{what}: Not JSON ({error})", field=what) from error


def to_headers(current: Cause) -> dict[str, str]:
    """A cause as the headers of a request, named as in an event's envelope."""
    headers = {"correlation-id": current.correlation_id, "causation-id": current.causation_id}
    return headers | ({"traceparent": current.traceparent} if current.traceparent else {})


PASSED_ON = re.compile(r"[!-~]{1,128}")
"""A header that may go into the envelope of every event that a request leads to; that has 64 KiB in all."""


def from_headers(headers: Mapping[str, str]) -> Cause:
    """The cause of a request; a new one for a program that sends none, or something else."""
    told = {name: value for name, value in headers.items() if PASSED_ON.fullmatch(value)}
    if "correlation-id" not in told or "causation-id" not in told:
        return Cause.new()
    return Cause(told["correlation-id"], told["causation-id"], told.get("traceparent"))


class Asks(Protocol):
    """Somebody who can ask other services."""

    async def ask(self, endpoint: Endpoint[Q, A], question: Q, *, within: float = 10) -> A:
        """The answer. Raises the DomainError that the service answered, or Unavailable."""


class Requester:
    """Asks over NATS."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def ask(self, endpoint: Endpoint[Q, A], question: Q, *, within: float = 10) -> A:
        """The answer. Raises the DomainError that the service answered.

        While nobody hears the question it is asked again; when there is no answer after `within` seconds, it raises
        Unavailable. The question may then have been heard, and asking again does no harm.
        """
        with span(endpoint.subject, "client", MICRO):
            return await self._ask(endpoint, question, within)

    async def _ask(self, endpoint: Endpoint[Q, A], question: Q, within: float) -> A:
        reply = await self._request(endpoint, msgspec.json.encode(question), within)
        try:
            if ERROR_CODE_HEADER in (reply.headers or {}):
                raise msgspec.json.decode(reply.data, type=Failure).error()
            return msgspec.json.decode(reply.data, type=endpoint.answer)
        except msgspec.MsgspecError as error:
            raise Unavailable(f"The answer to {endpoint.subject} is not understood here: {error}") from error

    async def _request(self, endpoint: Endpoint[Q, A], body: bytes, seconds: float) -> Msg:
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + seconds, 0.05
        headers = to_headers(current_cause())
        while True:
            left = deadline - loop.time()
            try:
                return await self._client.request(endpoint.subject, body, timeout=left, headers=headers)
            except (nats.errors.NoRespondersError, nats.errors.OutboundBufferLimitError) as error:  # nobody heard it
                if loop.time() + pause > deadline:
                    raise Unavailable(f"Nobody answers for {endpoint.service} now; try again.") from error
            except nats.errors.TimeoutError as error:
                detail = f"{endpoint.service} did not answer {endpoint.name} in {seconds:.0f} s; try again."
                raise Unavailable(detail) from error
            except nats.errors.MaxPayloadError as error:
                raise Invalid(f"A question of {len(body):,} bytes is larger than NATS takes.") from error
            except (nats.errors.Error, OSError) as error:
                raise Unavailable("The connection to NATS is closed.") from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1)


Reply = tuple[bytes, dict[str, str] | None]
"""Body and headers of an answer."""


def failure(error: DomainError) -> Reply:
    """The answer that tells an error, also to programs that know only ADR-32."""
    told = Failure.of(error)
    headers = {ERROR_CODE_HEADER: told.kind, ERROR_HEADER: told.detail[:200]}
    return msgspec.json.encode(told, enc_hook=str), headers


async def respond(message: Msg, body: bytes, headers: dict[str, str] | None) -> None:
    """Send an answer. One that does not arrive is as good as none: who asked will ask again."""
    with suppress(nats.errors.Error, OSError, ValueError):
        try:
            await Request(message).respond(body, headers)
        except nats.errors.MaxPayloadError:
            log.error("answer_too_large", subject=message.subject, size=len(body))
            body, headers = failure(Invalid("The answer is larger than NATS takes: ask for less at a time."))
            await Request(message).respond(body, headers)


class Responder:
    """Answers for a service, beside its other replicas: NATS gives each question to one of them. A worker.

    Up to `concurrency` questions are answered at a time. When it stops, it hears nothing new, has `patience` seconds
    to finish what it began, and lets the rest be asked elsewhere. Like every service of nats.micro (ADR-32) it answers
    on `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`.
    """

    def __init__(
        self,
        service: str,
        answering: Sequence[Answering[Any, Any]],
        client: Client,
        *,
        concurrency: int = 64,
        patience: float = 5,
    ) -> None:
        self.name = f"{service}-requests"
        self.problem: str | None = None
        self._config = ServiceConfig(
            name=service,
            version="1.0.0",
            description=f"Boxoffice: {service}",
            metadata={"process": f"{socket.gethostname()}:{os.getpid()}"},  # which may have several responders
        )
        self._answering = [(answering, concurrency)]
        self._client = client
        self._patience = patience

    def also(self, answering: Sequence[Answering[Any, Any]], *, concurrency: int = 64) -> None:
        """Answer these too, from the next run on, beside the others and not in their place.

        A second responder on the same connection would answer `$SRV` as well, and who may answer may do so once.
        """
        self._answering.append((answering, concurrency))

    def tells(self, stats: Callable[[], msgspec.Struct]) -> None:
        """Tell this too on `$SRV.STATS`, as the data of each endpoint: ADR-32 has no place for what is of them all."""
        self._config.stats_handler = lambda _: msgspec.to_builtins(stats())

    async def run(self) -> None:
        """Answer until cancelled."""
        service = _Service(self._client, self._config)
        endpoints = [
            _Endpoint(service, each, at_once)
            for answering, concurrency in self._answering
            for at_once in (asyncio.Semaphore(concurrency),)
            for each in answering
        ]
        try:
            await service.start()
            for endpoint in endpoints:
                await service.open(endpoint)
            await self._client.flush()
            if (task := asyncio.current_task()) and task.cancelling():
                raise asyncio.CancelledError  # which nats-py's flush lost (`wait_for` before Python 3.12)
            self.problem = None
            await asyncio.get_running_loop().create_future()
        finally:
            with suppress(nats.errors.Error, OSError):
                await asyncio.wait_for(service.stop(), 1)
            await asyncio.gather(*(endpoint.finish(self._patience) for endpoint in endpoints))


class _Service(MicroService):
    """nats.micro's, for endpoints of ours."""

    async def open(self, endpoint: "_Endpoint") -> None:
        await endpoint.open()
        self._endpoints.append(endpoint)


class _Endpoint(MicroEndpoint):
    """Answers one kind of question, many at a time.

    That of nats-py 2.16 answers one after the other, and when it stops, it drops those that wait.
    """

    def __init__(self, service: _Service, answering: Answering[Any, Any], at_once: asyncio.Semaphore) -> None:
        endpoint = answering.endpoint
        super().__init__(service, EndpointConfig(endpoint.name, self._handle_request, subject=endpoint.subject))  # type: ignore[arg-type]  # the base calls it with a Msg
        self._answering = answering
        self._at_once = at_once
        self._waiting: set[asyncio.Task[None]] = set()
        self._running: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Hear questions from now on."""
        await self._start()

    async def _stop(self) -> None:
        """Hear nothing new; take in what is on its way."""
        if self._subscription:
            await self._subscription.drain()  # type: ignore[no-untyped-call]  # nats-py forgot

    async def finish(self, patience: float) -> None:
        """Let what runs finish, and whatever else came here be asked elsewhere."""
        for task in self._waiting:
            task.cancel()
        late = self._running
        if late:
            _, late = await asyncio.wait(late, timeout=patience)
        for task in late:
            task.cancel()
        if leaving := self._waiting | late:
            await asyncio.wait(leaving, timeout=1)

    async def _handle_request(self, message: Msg) -> None:
        task = asyncio.create_task(self._serve(message))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        task.add_done_callback(self._running.discard)

    async def _serve(self, message: Msg) -> None:
        try:
            async with self._at_once:
                task = asyncio.current_task()
                assert task
                self._waiting.discard(task)
                self._running.add(task)
                body, headers = await self._answer(message)
        except asyncio.CancelledError:
            await respond(message, b"", NOBODY)
            raise
        await respond(message, body, headers)

    async def _answer(self, message: Msg) -> Reply:
        """The answer or the failure, counted and timed."""
        cause.set(from_headers(message.headers or {}))
        subject = self._answering.endpoint.subject
        with span(subject, "server", MICRO) as answering:
            return await self._answer_in(message, answering)

    async def _answer_in(self, message: Msg, answering: Span) -> Reply:
        endpoint = self._answering.endpoint
        started = time.perf_counter_ns()
        failed: Exception | None = None
        try:
            question = understood(message.data, endpoint.question, "the request")
            return msgspec.json.encode(await self._answering.answer(question)), None
        except DomainError as error:
            failed = error
            answering.tell("error.type", type(error).__name__)
            return failure(error)
        except Exception as error:
            failed = error
            answering.fail(type(error).__name__)
            log.exception("request_failed", subject=endpoint.subject)
            return failure(Unavailable(f"{endpoint.service} failed to answer {endpoint.name}; it was logged there."))
        finally:
            self._num_requests += 1
            self._processing_time += time.perf_counter_ns() - started
            self._average_processing_time = self._processing_time // self._num_requests
            if failed:
                self._num_errors += 1
                self._last_error = repr(failed)  # type: ignore[assignment]  # nats-py says it is always None
