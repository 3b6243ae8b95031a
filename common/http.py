"""The HTTP door that all services share: one Litestar app, health, metrics, documentation."""

import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import litestar_offline_docs
from litestar import Litestar, MediaType, Request, Response, Router, get
from litestar._openapi.schema_generation import SchemaCreator
from litestar._openapi.schema_generation.plugins.struct import StructSchemaPlugin  # there is no public way to extend it
from litestar.datastructures import ResponseHeader, State
from litestar.di import Provide
from litestar.enums import HttpMethod, OpenAPIMediaType, ScopeType
from litestar.exceptions import NotFoundException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import Components, Schema, SecurityScheme
from litestar.params import FromPath
from litestar.response import Redirect
from litestar.routes import HTTPRoute
from litestar.static_files import create_static_files_router
from litestar.types import ASGIApp, HTTPScope, Message, Method, Receive, Scope, Send
from litestar.typing import FieldDefinition
from msgspec import Meta
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from common.auth import ROLES, Authenticator, Credentials, RequiresUser, cookie_name
from common.clock import new_id_text
from common.errors import NotFound
from common.headers import EVERYWHERE, NO_STORE, SCRIPTS_POLICY, Header, headers_for, with_headers
from common.limits import Limited, Limits
from common.live import Connections
from common.metrics import registry_of
from common.problems import (
    BODY_LIMIT,
    TELL,
    JsonRequest,
    keep_failure,
    problems,
    refuse_what_would_be_ignored,
    tell_http_error,
    telling_failures,
)
from common.runtime import Service, serving
from common.settings import Settings
from common.telemetry import REQUESTS, Cause, cause
from common.tracing import Tracers, acting_as, span

TEXT = (
    r"^[^\s\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
    r"[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*(?!\n)$"
)
"""Text on one line that begins with something to be seen: the pattern for what people write and read.

Without what turns the direction of the text around it (Unicode's bidirectional embeddings, overrides and isolates)."""

LINE = Meta(
    min_length=1, max_length=200, pattern=TEXT, description="One line of text that begins with something to be seen"
)
"""What a name or a title is."""

WHO = SecurityScheme(
    type="http",
    scheme="bearer",
    description="An access token or API key; `dev:<name>` or `dev:<name>:<role>` where BOXOFFICE_AUTH is dev.",
)


def page(settings: Settings) -> SecurityScheme:
    """How a page of ours says who asks."""
    return SecurityScheme(
        type="apiKey",
        security_scheme_in="cookie",
        name=cookie_name(settings, "session"),
        description="The cookie of a login, which a browser keeps. What changes something also needs the header "
        f"`X-CSRF-Token` with what the cookie `{cookie_name(settings, 'csrf')}` holds.",
    )


LOCATION_HEADER = ResponseHeader(name="Location", description="Where it is now", documentation_only=True)

CORRELATION_ID = re.compile(r"[A-Za-z0-9_.-]{8,64}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
"""Those that are told apart: whoever asks may make up others."""

ASKED_AS: Mapping[str, Method] = {
    HttpMethod.HEAD: HttpMethod.GET,  # the web server leaves the body out
    HttpMethod.OPTIONS: HttpMethod.TRACE,  # refused with all that is allowed; Litestar's own answer leaves some out
}
"""Methods that no handler has: the one whose answer is theirs."""

SWAGGER = Path(litestar_offline_docs.__file__).parent / "static"

DOCUMENTATION = b"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Boxoffice</title>
<link rel="icon" href="data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>\
<text y='13' font-size='13'>&#127903;&#65039;</text></svg>">
<link rel="stylesheet" href="/api/docs/assets/swagger-ui.css">
<script src="/api/docs/assets/swagger-ui-bundle.js" defer></script>
<script src="/api/docs/start.js" defer></script>
</head>
<body><div id="swagger"></div></body>
</html>
"""
DOCUMENTED = ("batch", "history", "identity", "notification", "orders", "tickets")
"""The services with doors for programs. Each tells of its own at `/api/openapi/<name>.json`, wherever it runs."""

START = r"""async function documentation(addresses) {
  if (addresses.length === 1) return { url: addresses[0] };
  const answers = await Promise.all(addresses.map((address) => fetch(address).catch(() => ({ ok: false }))));
  const documents = await Promise.all(answers.filter(({ ok }) => ok).map((answer) => answer.json()));
  const parts = (name) => Object.assign({}, ...documents.map(({ components }) => components[name]));
  const paths = Object.assign({}, ...documents.map((document) => document.paths));
  const components = { schemas: parts("schemas"), securitySchemes: parts("securitySchemes") };
  return { spec: { ...documents[0], paths, components } };
}
documentation(ADDRESSES).then((what) => SwaggerUIBundle({
  ...what,
  dom_id: "#swagger",
  deepLinking: true,
  showExtensions: true,
  showCommonExtensions: true,
  requestInterceptor(request) {
    const csrf = document.cookie.match(/(?:^|; )(?:__Host-)?boxoffice-csrf=([^;]*)/);
    if (csrf) request.headers["X-CSRF-Token"] = csrf[1];
    return request;
  },
}));
"""
"""In a file of its own, as the policy of the page lets it run nothing that stands in the page. Who is logged in may try
all that they may do."""

DOCUMENTATION_POLICY = f"{SCRIPTS_POLICY}; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
"""Swagger UI sets styles in place."""


class Doors:
    """Which service a request is for, by the beginning of its path; in a process with one service, for that."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._by_path: dict[str, str] = {}
        for service in services:
            for route in service.routes:
                for each in route.routes if isinstance(route, Router) else ():
                    self._by_path.setdefault(beginning(each.path), service.name)
        self._otherwise = next((each.name for each in services if each.nowhere), services[0].name if services else "")

    def service(self, path: str) -> str:
        """The name of that service."""
        return self._by_path.get(beginning(path), self._otherwise)


def beginning(path: str) -> str:
    """The first two parts of a path, which are of one service: `/api/orders`."""
    return "/".join(path.split("/", 3)[:3])


UNSEEN = ("/health/", "/metrics")
"""What is asked all the time by what looks after the process. It makes no spans."""


def in_context(
    app: ASGIApp,
    headers: Sequence[Header] = EVERYWHERE,
    services: Sequence[Service] = (),
    tracers: Tracers | None = None,
) -> ASGIApp:
    """An app around `app` that gives each request its cause, counts and times it, and answers HEAD and OPTIONS.

    Every answer has `headers`, unless it has such ones itself; what is for somebody who is known, or sets a cookie, is
    kept by nobody. `tracers` make a span of it, of the one of `services` that it is for.

    Around all of Litestar, since a middleware of its own does not see what its router refuses.
    """

    doors = Doors(services)

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        with acting_as(doors.service(path), None if path.startswith(UNSEEN) else tracers):
            if scope["type"] == ScopeType.HTTP:
                await handle_request(scope, receive, send)
            else:
                await app(scope, receive, telling_failures(scope, with_headers_when_refused(send, headers)))

    async def handle_request(scope: HTTPScope, receive: Receive, send: Send) -> None:
        asked = dict(scope["headers"])
        given = asked.get(b"x-correlation-id", b"").decode("latin-1")
        given_trace = asked.get(b"traceparent", b"").decode("latin-1")
        trace = given_trace if TRACEPARENT.fullmatch(given_trace) else None
        request_id = new_id_text()
        correlation = given if CORRELATION_ID.fullmatch(given) else request_id
        method = scope["method"]
        scope = {**scope, "method": ASKED_AS.get(method, method)}
        known = method if method in METHODS else "_OTHER"
        allowed = False  # is this the answer to OPTIONS?
        started = time.perf_counter()
        status = 500

        async def send_on(message: Message) -> None:
            nonlocal status, allowed
            if message["type"] == "http.response.start":
                status, answer = message["status"], [*message["headers"]]
                if allowed := method == HttpMethod.OPTIONS and status == HTTPStatus.METHOD_NOT_ALLOWED:
                    status, answer = HTTPStatus.NO_CONTENT, [header for header in answer if header[0] == b"allow"]
                answer.append((b"x-correlation-id", correlation.encode()))
                private = scope.get("user") is not None or any(name == b"set-cookie" for name, _ in answer)
                answer = with_headers(answer, [*headers, NO_STORE] if private else headers)
                message["status"], message["headers"] = status, answer
            elif message["type"] == "http.response.body" and allowed:
                message["body"] = b""
            await send(message)

        told = {"http.request.method": known, "boxoffice.correlation_id": correlation}
        token = cause.set(Cause(correlation, request_id, trace))
        try:
            with span(known, "server", told) as answering:
                try:
                    await app(scope, receive, send_on)
                finally:
                    route = scope.get("path_template") or "unmatched"
                    REQUESTS.labels(known, route, status).observe(time.perf_counter() - started)
                    if answering.recording:
                        answering.name(f"{known} {route}")
                        answering.tell("http.route", route)
                        answering.tell("http.response.status_code", status)
                        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                            answering.fail(str(status))
        finally:
            cause.reset(token)

    return handle


def with_headers_when_refused(send: Send, headers: Sequence[Header]) -> Send:
    """A `send` for a WebSocket, whose handshake may be refused by an answer like any other."""

    async def send_on(message: Message) -> None:
        if message["type"] == "websocket.http.response.start":
            message["headers"] = with_headers([*message["headers"]], headers)
        await send(message)

    return send_on


@get("/health/live", include_in_schema=False, sync_to_thread=False)
def live() -> dict[str, str]:
    """This process answers; whether it can work is another question."""
    return {"status": "live"}


def reasons_not_ready(state: State) -> dict[str, str]:
    """What stands in the way of serving requests, by the worker that says so."""
    workers = [worker for service in state.services for worker in service.workers]
    reasons = {worker.name: worker.problem for worker in workers if worker.problem}
    return reasons if state.connected() else reasons | {"nats": "not connected"}


@get("/health/ready", include_in_schema=False, sync_to_thread=False)
def ready(state: State) -> Response[dict[str, Any]]:
    """Whether requests can be served now, and if not, why."""
    reasons = reasons_not_ready(state)
    status = "not ready" if reasons else "ready"
    return Response({"status": status, "problems": reasons}, status_code=503 if reasons else 200)


@get("/metrics", include_in_schema=False, media_type=MediaType.TEXT, sync_to_thread=False)
def metrics(state: State) -> Response[bytes]:
    """Prometheus metrics of this process."""
    return Response(generate_latest(state.metrics), media_type=CONTENT_TYPE_LATEST.removesuffix("; charset=utf-8"))


@get("/", include_in_schema=False, sync_to_thread=False)
def root() -> Redirect:
    """Where somebody begins who knows only the address."""
    return Redirect("/api/docs")


@get("/api/openapi.json", include_in_schema=False, sync_to_thread=False)
def openapi(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
    """What there is, for programs."""
    return Response(request.app.openapi_schema.to_schema(), media_type=OpenAPIMediaType.OPENAPI_JSON)


@get("/api/openapi/{name:str}", include_in_schema=False, sync_to_thread=False)
def openapi_of(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[dict[str, Any]]:
    """What one service has for programs, which a process that runs it knows: `orders.json`."""
    here = [service.name for service in request.app.state.services if service.name in DOCUMENTED]
    if name not in {f"{each}.json" for each in here}:
        raise NotFound(f"No {name} here; there are {', '.join(f'{each}.json' for each in here) or 'none'}.")
    return Response(request.app.openapi_schema.to_schema(), media_type=OpenAPIMediaType.OPENAPI_JSON)


@get("/start.js", media_type="text/javascript", sync_to_thread=False)
def start(state: State) -> str:
    """What makes the page of documentation: of this process, or of all services if each runs by itself."""
    here = [service.name for service in state.services if service.name in DOCUMENTED]
    alone = [f"/api/openapi/{name}.json" for name in DOCUMENTED]
    return START.replace("ADDRESSES", json.dumps(["/api/openapi.json"] if len(here) > 1 else alone))


class DocumentationPlugin(OpenAPIRenderPlugin):
    """Swagger UI without the internet, and without a script in the page."""

    def __init__(self) -> None:
        super().__init__(path="/")

    def render(self, *_: object) -> bytes:
        return DOCUMENTATION


class StructSchemas(StructSchemaPlugin):
    """Documents of a struct also what it is; of one that refuses unknown fields, that it does, and an example."""

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: SchemaCreator) -> Schema:
        struct = field_definition.type_
        schema = super().to_openapi_schema(field_definition, schema_creator)
        schema.description = struct.__doc__
        if struct.__struct_config__.forbid_unknown_fields:
            schema.additional_properties = False
            fields = {name: field for name, field in (schema.properties or {}).items() if isinstance(field, Schema)}
            # Swagger UI's own example has a field too many.
            schema.examples = [{name: field.examples[0] for name, field in fields.items() if field.examples}]
        return schema


def given(**things: object) -> dict[str, Provide]:
    """Things that exist once, as dependencies for handlers, by name.

    One is best: Litestar starts a task for each of several, which costs more than many a request.
    """

    def provider(thing: object) -> Provide:
        def provide() -> Any:
            return thing

        return Provide(provide, sync_to_thread=False)

    return {name: provider(thing) for name, thing in things.items()}


def document_refusals(app: Litestar) -> None:
    """Say of every handler behind `RequiresUser` who may ask, and of all how others are refused: none can forget it."""
    for route in app.routes:
        for handler in route.route_handlers if isinstance(route, HTTPRoute) else ():
            before = handler.resolve_middleware()
            required = [each for each in before if isinstance(each, RequiresUser)]
            if required:
                least = max(required, key=lambda each: ROLES.index(each.role))
                deed = "write" if any(map(RequiresUser.writes, handler.http_methods)) else "read"
                scopes = [f"{least.area}:{deed}"] if least.area else []
                needed = [least.role, *scopes]
                handler.security = [{"bearer": needed}, {"page": needed}]
                handler.responses = {**(handler.responses or {}), **problems(401, 403)}
            if any(isinstance(each, Limited) for each in before):
                handler.responses = {**(handler.responses or {}), **problems(429)}


def create_app(
    services: Sequence[Service],
    settings: Settings,
    *,
    connected: Callable[[], bool] = lambda: True,
    connections: Connections | None = None,
    credentials: Credentials | None = None,
    tracers: Tracers | None = None,
) -> Litestar:
    """One app with the doors of `services`, which runs their workers as long as it lives.

    `connected` tells whether the event log can be reached; `connections`: those that the services keep open;
    `credentials`: who is let in with what identity issued; `tracers`: who makes spans of what is done.
    """

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with serving(services, tracers):
            yield

    nowhere = next((service.nowhere for service in services if service.nowhere), None)
    assets = create_static_files_router("/api/docs/assets", [SWAGGER], include_in_schema=False)
    documentation = Router(
        "/api/docs",
        route_handlers=[start],
        include_in_schema=False,
        response_headers={"Content-Security-Policy": DOCUMENTATION_POLICY},
    )
    app = Litestar(
        route_handlers=[
            *([] if nowhere else [root]),
            live,
            ready,
            *([] if settings.metrics_port else [metrics]),
            openapi,
            openapi_of,
            assets,
            *(route for service in services for route in service.routes),
        ],
        before_request=refuse_what_would_be_ignored,
        exception_handlers={**TELL, NotFoundException: nowhere or tell_http_error},
        after_exception=[keep_failure],
        request_class=JsonRequest,
        plugins=[StructSchemas()],
        lifespan=[lifespan],
        request_max_body_size=BODY_LIMIT,
        logging_config=None,
        openapi_config=OpenAPIConfig(
            title="Boxoffice",
            version="0.1.0",
            description="Money is in minor units of its currency, times are RFC 3339 in UTC, errors are RFC 9457. "
            "What services tell each other is [on a page of its own](/api/events/docs).",
            openapi_router=documentation,
            render_plugins=[DocumentationPlugin()],
            use_handler_docstrings=True,
            security=[],
            components=Components(security_schemes={"bearer": WHO, "page": page(settings)}),
        ),
        state=State(
            {
                "settings": settings,
                "services": services,
                "authenticator": Authenticator(settings, credentials),
                "limits": Limits(settings),
                "connected": connected,
                "metrics": registry_of(services, connected),
                "connections": connections or Connections(settings.connections),
            }
        ),
    )
    document_refusals(app)
    app.asgi_handler = in_context(app.asgi_handler, headers_for(settings.public_url), services, tracers)
    return app
