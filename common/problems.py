"""What is wrong, as HTTP tells it: problem details (RFC 9457) that name the field, what it held and what is allowed."""

import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, cast

import msgspec
import structlog
from litestar import Request, Response
from litestar.enums import HttpMethod, ParamType, ScopeType
from litestar.exceptions import HTTPException, ValidationException, WebSocketException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.openapi import ResponseSpec
from litestar.params import ParameterKwarg, QueryParameter
from litestar.types import HTTPScope, Message, Scope, Send
from msgspec import inspect

from common.errors import (
    Conflict,
    DomainError,
    Forbidden,
    Invalid,
    NotFound,
    PaymentDeclined,
    PreconditionRequired,
    Stale,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from common.events import UndecodableEvent
from common.explain import explain, in_words
from common.postgres import MISDIRECTED, NOT_MIGRATED, POSTGRES_FAILED, is_away, told

log = structlog.get_logger()

PROBLEM = "application/problem+json"
BODY_LIMIT = 1_000_000
"""Bytes of a request body at most."""
BODY_SECONDS = 60.0
"""After so long all of a body has to be here that is no upload."""

STATUS: Mapping[type[DomainError], int] = {
    Invalid: 422,
    Unauthenticated: 401,
    PaymentDeclined: 402,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    Stale: 412,
    PreconditionRequired: 428,
    TooManyRequests: 429,
    Unavailable: 503,
}
"""What each kind of error is in HTTP; the only place that says so."""

NOT_LET_IN = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
"""What is logged of what is refused: whoever runs the system wants to see who tries. Who tries too often is counted."""

SHOWN = 80
"""Characters at most of what somebody sent us that we show them again."""


class FieldProblem(msgspec.Struct, omit_defaults=True):
    """One thing that is wrong with a request: where, what is allowed there, and what was found (as JSON, shortened)."""

    field: str
    message: str
    got: str | None = None

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" + (f", got {self.got}" if self.got is not None else "")


class Problem(msgspec.Struct, omit_defaults=True):
    """An error, as RFC 9457 has it. There may be further members that belong to the kind of error."""

    status: int
    title: str
    detail: str
    errors: list[FieldProblem] = []


class BadRequest(Exception):
    """Something in a request is not what the handler takes."""

    def __init__(self, problem: FieldProblem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def problems(*statuses: int) -> dict[int, ResponseSpec]:
    """The errors that a handler documents."""
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


class JsonRequest(Request[Any, Any, Any]):
    """A request whose body is to the letter what its handler takes: no `"1"` for a number, and no name twice."""

    async def json(self) -> Any:
        """The body as the type of the handler's `data`. Raises BadRequest, HTTPException for what is not JSON."""
        if self.content_type[0] != "application/json":
            got = self.headers.get("content-type", "none")
            raise HTTPException(status_code=415, detail=f"Content-Type: application/json is needed, got {shown(got)}")
        data = self.route_handler.parsed_data_field
        assert data is not None, "only a handler with `data` is asked for it"
        return parsed(await self.body(), data.annotation)

    async def body(self) -> bytes:
        """All of the body. Raises HTTPException when it takes too long to come."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await super().body()
        except TimeoutError:
            detail = f"The body did not come to its end within {BODY_SECONDS:.0f} s."
            raise HTTPException(status_code=408, detail=detail, headers={"Connection": "close"}) from None


async def refuse_what_would_be_ignored(request: Request[Any, Any, Any]) -> None:
    """Refuse what no handler looks at although who sends it means something by it. Raises BadRequest, HTTPException."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity" and request.method in (HttpMethod.POST, HttpMethod.PATCH):
        detail = f"Content-Encoding: The body is taken as it is (identity), got {shown(encoding)}"
        raise HTTPException(status_code=415, detail=detail, headers={"Accept-Encoding": "identity"})
    refuse_unknown_parameters(request)


def refuse_unknown_parameters(request: Request[Any, Any, Any]) -> None:
    """Refuse a query parameter that a documented handler does not take, or one that is there twice and is no list.

    Raises BadRequest.
    """
    handler = request.route_handler
    if not request.scope["query_string"] or not handler.resolve_include_in_schema():
        return
    known = {
        declared.name or name: any(kind.is_non_string_sequence for kind in (each, *each.inner_types))
        for name, each in handler.parsed_fn_signature.parameters.items()
        if isinstance(declared := each.kwarg_definition, QueryParameter)
    }
    for name, value in request.query_params.items():
        if len(request.query_params.getall(name)) > 1 and not known.get(name):
            raise BadRequest(FieldProblem(clipped(name), "May be given once, is there twice"))
        if name not in known:
            there_are = f"there are {', '.join(sorted(known))}" if known else "there are none here"
            raise BadRequest(FieldProblem(clipped(name), f"There is no such parameter; {there_are}", shown(value)))


def parsed(body: bytes, kind: Any, *, outermost: bool = False) -> Any:
    """A JSON body as what type `kind` is. Raises BadRequest.

    `outermost`: names that are twice in an object inside it are left to whoever reads that object.
    """
    try:
        value = decoded(body, kind)
        if outermost:
            names_once(OUTERMOST.decode(body.decode()))
        else:
            BODY.decode(body.decode())
    except msgspec.ValidationError as error:
        path, message = explain(str(error), kind)
        raise BadRequest(FieldProblem(clipped(".".join(path)) or "body", message, found_in(body, path))) from error
    except msgspec.DecodeError as error:
        where = f" after byte {len(body)}" if str(error) == "Input data was truncated" else ""
        raise BadRequest(FieldProblem("body", f"{error}{where}")) from error
    except UnicodeDecodeError as error:
        raise BadRequest(FieldProblem("body", f"Not UTF-8 (byte {error.start} of a text)")) from error
    except RecursionError as error:
        raise BadRequest(FieldProblem("body", "Nested too deeply")) from error
    return value


def decoded(body: bytes, kind: Any) -> Any:
    """JSON as type `kind`; 3.0 is an integer too, as JSON Schema has it. Raises msgspec.DecodeError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError:
        with suppress(ValueError, RecursionError, msgspec.MsgspecError):
            return msgspec.json.decode(msgspec.json.encode(json.loads(body, parse_float=number)), type=kind)
        raise


def number(text: str) -> float:
    """A number that is written as a float. Raises ValueError for one that is too large to be any."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return int(value) if value.is_integer() else value


def names_once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's members. Raises BadRequest for a name that is there twice: readers differ in which one counts."""
    found = dict(members)
    if len(found) < len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest(FieldProblem(clipped(twice), "May be given once, is there twice"))
    return found


BODY = json.JSONDecoder(object_pairs_hook=names_once)
OUTERMOST = json.JSONDecoder(object_pairs_hook=list)
"""An object as its members."""


def found_in(body: bytes, path: Sequence[str]) -> str | None:
    """What a JSON body has at `path`, shortened; None for nothing, or when what comes after it is no JSON."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    for step in path:
        if isinstance(value, list):
            value = value[int(step)]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            return None
    return shown(value)


def shown(value: object) -> str:
    """Something somebody sent, as JSON that can be read."""
    return clipped(msgspec.json.encode(value).decode())


def clipped(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def tell_domain_error(request: Request[Any, Any, Any], error: DomainError) -> Response[Any]:
    """What the system refused, with the status of its kind."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    if status in NOT_LET_IN:
        log_refusal(request, status, error)
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers["Retry-After"] = str(error.context.get("retry_after", 1))
    members = dict(error.context)
    if isinstance(field := members.pop("field", None), str):
        got = shown(members.pop("got")) if "got" in members else None
        members["errors"] = [FieldProblem(field, error.detail.removeprefix(f"{field}: "), got)]
    return problem(status, error.detail, headers, **members)


def log_refusal(request: Request[Any, Any, Any], status: int, error: DomainError) -> None:
    """Log that somebody was not let in: where to, who as far as is known, and why. Never what they showed for it.

    As a warning, but for whoever showed nothing: every browser begins so.
    """
    user, client = request.scope.get("user"), request.client
    shown_something = status != HTTPStatus.UNAUTHORIZED or request.app.state.authenticator.shown(request.scope)
    (log.warning if shown_something else log.info)(
        "refused",
        status=status,
        method=request.method,
        path=clipped(request.scope["path"]),
        user_id=user.id if user else None,
        key_id=str(user.key) if user and user.key else None,
        address=client.host if client else None,
        reason=error.detail,
    )


def tell_bad_request(_: Request[Any, Any, Any], error: BadRequest) -> Response[Any]:
    """What is wrong with a body."""
    return problem(400, str(error), errors=[error.problem])


def tell_bad_parameters(request: Request[Any, Any, Any], error: ValidationException) -> Response[Any]:
    """What Litestar found wrong: parameters in the path, the query and the headers, and a body that is missing."""
    if isinstance(missing := error.__cause__, KeyError):  # Litestar 2.25 has no other sign of it
        return tell_missing(request, missing.args[0])
    found = error.extra if isinstance(error.extra, list) else []
    errors = [parameter_problem(request, item["key"], item["message"]) for item in found]
    return problem(400, "; ".join(map(str, errors)) or error.detail, errors=errors)


def tell_missing(request: Request[Any, Any, Any], name: str) -> Response[Any]:
    """A parameter that is needed and not there."""
    if name == "if-match":
        detail = "If-Match: Required; say which version you have seen, by the ETag of your GET."
        return tell_domain_error(request, PreconditionRequired(detail, field="If-Match"))
    return tell_bad_request(request, BadRequest(FieldProblem(name, "Required")))


def parameter_problem(request: Request[Any, Any, Any], key: str, message: str) -> FieldProblem:
    """One of Litestar's findings, under the name that the caller knows."""
    if key == "data":
        return FieldProblem("body", "A JSON object is needed, got nothing")
    parameter = request.route_handler.parsed_fn_signature.parameters[key]
    declared = parameter.kwarg_definition
    assert isinstance(declared, ParameterKwarg), f"{key} is no parameter"
    name = declared.name or key
    places: Mapping[ParamType, Mapping[str, Any]] = {
        ParamType.QUERY: request.query_params,
        ParamType.HEADER: request.headers,
        ParamType.PATH: request.path_params,
    }
    kind = inspect.type_info(parameter.annotation)
    if declared.description:
        kind = inspect.Metadata(kind, extra_json_schema={"description": declared.description})
    return FieldProblem(name, in_words(message, kind), shown(places[declared.param_type].get(name)))


def tell_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """What a handler refuses in words, and Litestar by itself: unknown paths, wrong methods, bodies too large."""
    if error.detail == "client disconnected prematurely":  # Litestar 2.25 has no class for it
        return problem(400, "The body came to no end.")
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return tell_bug(request, error)
    if type(error) is HTTPException:  # a handler's own, in its own words
        return problem(error.status_code, error.detail, error.headers)
    if isinstance(error, RequestEntityTooLarge):
        most = request.route_handler.resolve_request_max_body_size()
        return problem(413, f"The body is larger than {most:,} bytes.")
    path = clipped(request.url.path)
    headers = dict(error.headers or {})
    if allowed := headers.get("allow"):
        headers["allow"] = ", ".join(sorted({*allowed.split(", "), *(["HEAD"] if "GET" in allowed else [])}))
    details = {
        404: f"There is nothing at {path}.",
        405: f"{request.method} is not possible at {path}; possible: {headers.get('allow')}.",
    }
    return problem(error.status_code, details.get(error.status_code, error.detail), headers)


def tell_database_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Postgres is down, restarting or not prepared, which is not the caller's fault; or the bug is ours."""
    if is_away(error):
        detail = "The read model does not answer now; try again."
    elif isinstance(error, NOT_MIGRATED):
        detail = "The read model is not there as it should be. Has `boxoffice migrate` run?"
    elif isinstance(error, MISDIRECTED):
        detail = "The read model cannot be reached as this is set up. `boxoffice doctor` says why."
    else:
        return tell_bug(request, error)
    log.warning("database_unavailable", problem=told(error))
    return tell_domain_error(request, Unavailable(detail))


def tell_other_version(request: Request[Any, Any, Any], error: UndecodableEvent) -> Response[Any]:
    """The log has an event that this process does not understand, as while a newer version is rolled out."""
    log.error("event_not_understood", problem=f"{error}; deploy the code that knows this event")
    return tell_domain_error(request, Unavailable("This is written by a newer version than this process; try again."))


def tell_bug(_: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Something that nobody thought of. It is logged; the caller learns nothing of the inside."""
    log.error("request_failed", exc_info=error)
    return problem(500, "This is our mistake. It was logged under the correlation id of this answer.")


TELL: dict[int | type[Exception], Callable[[Request[Any, Any, Any], Any], Response[Any]]] = {
    DomainError: tell_domain_error,
    BadRequest: tell_bad_request,
    ValidationException: tell_bad_parameters,
    HTTPException: tell_http_error,
    **dict.fromkeys(POSTGRES_FAILED, tell_database_error),
    UndecodableEvent: tell_other_version,
    Exception: tell_bug,
}
"""Who tells what, the most special kind first."""

FAILED_WITH = "boxoffice.failed_with"


async def keep_failure(error: Exception, scope: Scope) -> None:
    """Keep what a WebSocket fails with, until `telling_failures` knows where: Litestar 2.25 says 403 to all of it."""
    if scope["type"] == ScopeType.WEBSOCKET:
        scope["state"][FAILED_WITH] = error


def telling_failures(scope: Scope, send: Send) -> Send:
    """A `send` for a WebSocket. One that is refused before it was accepted gets the answer that HTTP would give."""
    accepted = False

    async def send_on(message: Message) -> None:
        nonlocal accepted
        accepted = accepted or message["type"] == "websocket.accept"
        error = scope["state"].get(FAILED_WITH)
        if error is None or message["type"] != "websocket.close":
            await send(message)
        elif accepted:
            if not isinstance(error, (DomainError, WebSocketException, OSError)):
                log.error("socket_failed", exc_info=error)
            await send(message)
        else:
            await refuse_socket(error, scope, send)

    return send_on


async def refuse_socket(error: Exception, scope: Scope, send: Send) -> None:
    """Answer the handshake with a problem, as the ASGI extension `websocket.http.response` has it."""
    handshake = cast(HTTPScope, {**scope, "type": ScopeType.HTTP, "method": HttpMethod.GET})
    request: Request[Any, Any, Any] = Request(handshake)
    response = next(TELL[kind] for kind in type(error).__mro__ if kind in TELL)(request, error)

    async def send_as_answer(message: Message) -> None:
        await send(cast(Message, {**message, "type": f"websocket.{message['type']}"}))

    answer = response.to_asgi_response(app=None, request=request)
    await answer(handshake, request.receive, send_as_answer)
