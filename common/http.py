"""The HTTP door that all services share: one Litestar app, problem details, health, metrics, documentation."""

import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import asyncpg
import msgspec
import structlog
from litestar import Litestar, MediaType, Request, Response, get
from litestar.datastructures import ResponseHeader, State
from litestar.di import Provide
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException, ValidationException
from litestar.middleware import ASGIMiddleware
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import SwaggerRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ASGIApp, HTTPReceiveMessage, Message, Receive, Scope, Send
from litestar_offline_docs import generate_static_files_config
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from common.auth import Authenticator, User
from common.clock import new_id
from common.errors import (
    Conflict,
    DomainError,
    Forbidden,
    Invalid,
    NotFound,
    PaymentDeclined,
    PreconditionRequired,
    Stale,
    Unauthenticated,
    Unavailable,
)
from common.runtime import Service, running
from common.settings import Settings
from common.telemetry import REQUESTS, Cause, cause

log = structlog.get_logger()

PROBLEM = "application/problem+json"
BODY_LIMIT = 1_000_000
"""Bytes of a request body at most."""

STATUS: Mapping[type[DomainError], int] = {
    Invalid: 422,
    Unauthenticated: 401,
    PaymentDeclined: 402,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    Stale: 412,
    PreconditionRequired: 428,
    Unavailable: 503,
}
"""What each kind of error is in HTTP; the only place that says so."""

TEXT = r"^[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*(?!\n)$"
"""Text on one line that does not begin with a space: the pattern for what people write and read."""

BEARER: list[dict[str, list[str]]] = [{"bearer": []}]
"""What OpenAPI says of a handler with the guard `requires_user`."""

LOCATION_HEADER = ResponseHeader(name="Location", description="Where it is now", documentation_only=True)

# What Postgres says while it is down, starting, stopping, full or not migrated.
PASSING = (
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.UndefinedTableError,
)
DATABASE_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

CORRELATION_ID = re.compile(r"[A-Za-z0-9_.-]{8,64}")
NAMED_FIELD = re.compile(r"(?:unknown|required) field `([^`]*)`")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class FieldProblem(msgspec.Struct):
    """One thing that is wrong with a request: where, what was found there, and what is allowed."""

    field: str
    message: str
    got: str | None = None


class Problem(msgspec.Struct, omit_defaults=True):
    """An error, as RFC 9457 has it. There may be further members that belong to the kind of error."""

    status: int
    title: str
    detail: str
    errors: list[FieldProblem] = []


def problems(*statuses: int) -> dict[int, ResponseSpec]:
    """The errors that a handler documents; 400 and 413 are told by hand as well."""
    return {
        status: ResponseSpec(
            data_container=Problem,
            media_type=PROBLEM,
            description=HTTPStatus(status).phrase,
            generate_examples=False,
        )
        for status in statuses
    }


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None, **members: object) -> Response[Any]:
    """The response that tells a problem."""
    body = {"status": status, "title": HTTPStatus(status).phrase, "detail": detail, **members}
    return Response(body, status_code=status, media_type=PROBLEM, headers=dict(headers or {}))


def tell_domain_error(_: Request[Any, Any, Any], error: DomainError) -> Response[Any]:
    """What the system refused, with the status of its kind."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "1"
    return problem(status, error.detail, headers, **error.context)


def tell_bad_request(request: Request[Any, Any, Any], error: ValidationException) -> Response[Any]:
    """What was wrong with a request, field by field, with what it got."""
    found = error.extra if isinstance(error.extra, list) else []
    errors = [_field_problem(request, item) for item in found]
    detail = "; ".join(f"{e.field}: {e.message}" + (f", got {e.got}" if e.got else "") for e in errors)
    return problem(400, detail or f"body: {error.detail}", errors=errors)


def _field_problem(request: Request[Any, Any, Any], item: dict[str, Any]) -> FieldProblem:
    """One of Litestar's findings, with the field's own name and what it held."""
    message, key, source = item["message"], item.get("key", "body"), item.get("source", "body")
    if named := NAMED_FIELD.search(message):  # msgspec names it in the message only
        key = named[1] if key == "data" else f"{key}.{named[1]}"
    return FieldProblem("body" if key == "data" else key, message, _what_came(request, key, source))


def _what_came(request: Request[Any, Any, Any], field: str, source: str) -> str | None:
    """The value that a request had at `field`, cut to a length that can be read."""
    value: Any
    if source == "query":
        value = request.query_params.get(field)
    elif source == "header":
        value = request.headers.get(field)
    elif source == "path":
        value = request.path_params.get(field)
    else:
        try:
            value = msgspec.json.decode(b"".join(request.scope["state"]["body"]))
        except msgspec.MsgspecError:
            return None
        for part in field.split(".") if field not in ("data", "body") else ():
            if not isinstance(value, dict) or part not in value:
                return None
            value = value[part]
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:77] + "..."


def tell_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """What Litestar refuses by itself: unknown paths, wrong methods, bodies that are no JSON or too large."""
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return tell_bug(request, error)
    path = request.url.path
    details = {
        404: f"There is nothing at {path}.",
        405: f"{request.method} is not possible at {path}.",
        413: f"The body is larger than {BODY_LIMIT:,} bytes.",
    }
    return problem(error.status_code, details.get(error.status_code, f"body: {error.detail}"), error.headers)


def tell_database_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Postgres is down, restarting or not prepared: not the caller's fault, and it passes."""
    if isinstance(error, asyncpg.PostgresError) and not isinstance(error, PASSING):
        return tell_bug(request, error)
    log.warning("database_unavailable", error=repr(error))
    hint = " Has `boxoffice migrate` run?" if isinstance(error, asyncpg.UndefinedTableError) else ""
    return tell_domain_error(request, Unavailable(f"The read model does not answer now; try again.{hint}"))


def tell_bug(_: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Something that nobody thought of. It is logged; the caller learns nothing of the inside."""
    log.error("request_failed", exc_info=error)
    return problem(500, "This is our mistake. It was logged under the correlation id of this answer.")


class RequestContext(ASGIMiddleware):
    """Gives each request its cause, and counts and times it."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        assert scope["type"] == ScopeType.HTTP
        headers = dict(scope["headers"])
        given = headers.get(b"x-correlation-id", b"").decode("latin-1")
        trace = headers.get(b"traceparent", b"").decode("latin-1")
        request_id = str(new_id())
        correlation = given if CORRELATION_ID.fullmatch(given) else request_id
        token = cause.set(Cause(correlation, request_id, trace if TRACEPARENT.fullmatch(trace) else None))
        body: list[bytes] = []  # kept for whoever has to say what was wrong with it
        scope["state"]["body"] = body
        started = time.perf_counter()
        status = 500

        async def receive_on() -> HTTPReceiveMessage:
            message: HTTPReceiveMessage = await receive()  # type: ignore[assignment]  # HTTP scopes only
            if message["type"] == "http.request":
                body.append(message["body"])
            return message

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-correlation-id", correlation.encode())]
            await send(message)

        try:
            await next_app(scope, receive_on, send_on)
        finally:
            cause.reset(token)
            route = scope.get("path_template") or "unmatched"
            REQUESTS.labels(scope["method"], route, status).observe(time.perf_counter() - started)


@get("/health/live", include_in_schema=False, sync_to_thread=False)
def live() -> dict[str, str]:
    """This process answers; whether it can work is another question."""
    return {"status": "live"}


@get("/health/ready", include_in_schema=False, sync_to_thread=False)
def ready(state: State) -> Response[dict[str, Any]]:
    """Whether requests can be served now, and if not, why."""
    reasons = {
        worker.name: worker.problem for service in state.services for worker in service.workers if worker.problem
    }
    if not state.connected():
        reasons["nats"] = "not connected"
    status = "not ready" if reasons else "ready"
    return Response({"status": status, "problems": reasons}, status_code=503 if reasons else 200)


@get("/metrics", include_in_schema=False, media_type=MediaType.TEXT, sync_to_thread=False)
def metrics() -> Response[bytes]:
    """Prometheus metrics of this process."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def user_of(request: Request[User, Any, Any]) -> User:
    """Whoever the guard `requires_user` let in."""
    return request.user


def given(**things: object) -> dict[str, Provide]:
    """Things that exist once, as dependencies for handlers, by name."""

    def provider(thing: object) -> Provide:
        def provide() -> Any:
            return thing

        return Provide(provide, sync_to_thread=False)

    return {name: provider(thing) for name, thing in things.items()}


def create_app(
    services: Sequence[Service], settings: Settings, *, connected: Callable[[], bool] = lambda: True
) -> Litestar:
    """One app with the doors of `services`, which runs their workers as long as it lives.

    `connected` tells whether the event log can be reached.
    """

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with running([worker for service in services for worker in service.workers]):
            yield

    docs = SwaggerRenderPlugin(
        path="/",
        js_url="/api/docs/assets/swagger-ui-bundle.js",
        css_url="/api/docs/assets/swagger-ui.css",
        standalone_preset_js_url="/api/docs/assets/swagger-ui-standalone-preset.js",
    )
    return Litestar(
        route_handlers=[live, ready, metrics, *(route for service in services for route in service.routes)],
        dependencies={"user": Provide(user_of, sync_to_thread=False)},
        middleware=[RequestContext()],
        exception_handlers={
            DomainError: tell_domain_error,
            ValidationException: tell_bad_request,
            HTTPException: tell_http_error,
            **dict.fromkeys(DATABASE_ERRORS, tell_database_error),
            Exception: tell_bug,
        },
        lifespan=[lifespan],
        request_max_body_size=BODY_LIMIT,
        logging_config=None,
        openapi_config=OpenAPIConfig(
            title="Boxoffice",
            version="0.1.0",
            description="Money is in minor units of its currency, times are RFC 3339 in UTC, errors problem details.",
            path="/api/docs",
            render_plugins=[docs],
            security=[],
            components=Components(security_schemes={"bearer": SecurityScheme(type="http", scheme="bearer")}),
        ),
        static_files_config=[generate_static_files_config("/api/docs/assets")],
        state=State({"services": services, "authenticator": Authenticator(settings.auth), "connected": connected}),
    )
