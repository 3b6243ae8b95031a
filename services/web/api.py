"""HTTP -> the page, whichever of its views is asked for, and what it is made of."""

from http import HTTPStatus
from typing import Any

from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.enums import HttpMethod
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from common.clock import now
from common.errors import NotFound
from common.problems import tell_http_error
from services.web.files import File, Files

VIEWS = [
    "/",
    "/tickets/{id:str}",
    "/orders",
    "/orders/{id:str}",
    "/sell",
    "/sell/new",
    "/sell/upload",
    "/sell/{id:str}",
    "/jobs",
    "/jobs/kinds",
    "/jobs/templates",
    "/jobs/templates/new",
    "/jobs/templates/{id:str}",
    "/jobs/{id:str}",
    "/notices",
    "/notices/preferences",
    "/notices/webhooks",
    "/notices/webhooks/new",
    "/notices/webhooks/{id:str}",
    "/system",
    "/system/dead",
    "/time",
    "/time/trace/{id:str}",
    "/time/past",
    "/time/{service:str}/{id:str}",
]
"""The addresses of what the page shows, as `start.js` has them: each can be shared, and opened first."""

FOR_PROGRAMS = {"api", "assets", "clock", "health", "metrics"}
"""What addresses begin with under which there is nothing for people."""

FOREVER = "public, max-age=31536000, immutable"
"""For what has another name as soon as it is another (RFC 8246)."""


@get(VIEWS, include_in_schema=False, sync_to_thread=False)
def page(request: Request[Any, Any, Any], files: NamedDependency[Files]) -> Response[bytes]:
    """The page; which view it shows, it sees by its address."""
    return document(request, files)


def nowhere(files: Files, request: Request[Any, Any, Any], error: NotFoundException) -> Response[Any]:
    """What is told of an address that nobody knows: to people the page, which says so; to programs a problem."""
    begin = request.scope["path"].lstrip("/").partition("/")[0]
    is_browser = request.method == HttpMethod.GET and "text/html" in request.headers.get("accept", "")
    told = document(request, files) if is_browser and begin not in FOR_PROGRAMS else tell_http_error(request, error)
    told.status_code = HTTPStatus.NOT_FOUND
    told.headers["Vary"] = "Accept, Accept-Encoding"
    return told


def document(request: Request[Any, Any, Any], files: Files) -> Response[bytes]:
    """The page, and what it may do."""
    told = sent(request, files.index, "no-cache")
    told.headers["Content-Security-Policy"] = files.policy
    return told


@get("/assets/{version:str}/{name:path}", include_in_schema=False, sync_to_thread=False)
def asset(
    version: FromPath[str], name: FromPath[str], request: Request[Any, Any, Any], files: NamedDependency[Files]
) -> Response[bytes]:
    """A file of the page. Of another version, while one is rolled out, it is what is there, and nobody keeps it."""
    file = files.others.get(name.removeprefix("/"))
    if file is None:
        raise NotFound("The page has no such file; load it anew.")
    return sent(request, file, FOREVER if version == files.version else "no-store")


@get("/clock", include_in_schema=False, sync_to_thread=False)
def clock() -> Response[dict[str, str]]:
    """What time it is here: by it a page counts down, whatever the clock of its machine says."""
    return Response({"now": now().isoformat()}, headers={"Cache-Control": "no-store"})


def sent(request: Request[Any, Any, Any], file: File, kept: str) -> Response[bytes]:
    """A file, compressed for whoever takes that (RFC 9110, 12.5.3)."""
    headers = {"Cache-Control": kept, "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.compressed, media_type=file.media_type, headers=headers | {"Content-Encoding": "gzip"})
    return Response(file.source, media_type=file.media_type, headers=headers)
