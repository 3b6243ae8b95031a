"""Who is asking. Until the identity service exists, `Authorization: Bearer dev:<name>` where `BOXOFFICE_AUTH=dev`."""

import re
from base64 import b64decode
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request
from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Meta

from common.errors import Forbidden, Unauthenticated

DEV_TOKEN = re.compile(r"(?i:bearer) +dev:([A-Za-z0-9_.@-]{1,64})")

UserId = Annotated[
    str,
    Meta(min_length=1, max_length=255, pattern=r"^[!-~]+(?!\n)$", description="1 to 255 visible ASCII characters"),
]
"""Who somebody is, as the subject of a token of OpenID Connect says: the same at every door."""


class User(msgspec.Struct, frozen=True):
    """A person or program that is let in."""

    id: str


SUBPROTOCOL = "boxoffice"
"""What a page asks for beside its bearer when it opens a WebSocket, and gets."""

UserRequest = Request[User, Any, State]
"""A request that passed `RequiresUser`: `request.user` is who asks."""


class Authenticator:
    """Tells from a request's Authorization header who asks."""

    def __init__(self, mode: Literal["dev", "off"]) -> None:
        self._mode = mode

    def user(self, authorization: str | None) -> User:
        """Raises Unauthenticated, and says what would be believed."""
        if self._mode == "off":
            raise Unauthenticated("Nobody can log in here: BOXOFFICE_AUTH is off.")
        if authorization is None:
            raise Unauthenticated(
                "Authorization: Required; say who you are: `Bearer dev:<name>`", field="Authorization"
            )
        if not (token := DEV_TOKEN.fullmatch(authorization)):
            raise Unauthenticated(
                "Authorization: Expected `Bearer dev:<name>`, with a name of 1 to 64 of A-Z a-z 0-9 _ . @ -",
                field="Authorization",
            )
        return User(token[1])


class RequiresUser(ASGIMiddleware):
    """Before anything else is looked at, whoever asks has to be known.

    A middleware rather than a guard: Litestar 2.25 copies the handler for every call of one.
    """

    scopes = (ScopeType.HTTP, ScopeType.WEBSOCKET)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        authenticator: Authenticator = scope["litestar_app"].state.authenticator
        given = header(scope, b"authorization")
        if scope["type"] == ScopeType.WEBSOCKET:
            require_same_origin(header(scope, b"origin"), header(scope, b"host"))
            given = given or bearer_among(scope["subprotocols"])
        scope["user"] = authenticator.user(given)
        await next_app(scope, receive, send)


def header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for each, value in scope["headers"] if each == name), None)


def require_same_origin(origin: str | None, host: str | None) -> None:
    """Raises Forbidden for a page of somebody else's: browsers let every page open a WebSocket to everywhere.

    They always say whose page it is; programs need not.
    """
    if origin is None:
        return
    scheme, _, there = origin.lower().partition("://")
    port = ":443" if scheme == "https" else ":80"
    here = (host or "").lower()
    if not there or there.removesuffix(port) != here.removesuffix(port):
        raise Forbidden(f"Origin: A WebSocket is for pages of {here[:80]}, and yours is of {origin[:80]}.")


def bearer_among(subprotocols: Sequence[str]) -> str | None:
    """The Authorization that a page gives as `bearer.<base64url of the token>`: it can set no header of a WebSocket.

    Raises Unauthenticated.
    """
    given = next((each.removeprefix("bearer.") for each in subprotocols if each.startswith("bearer.")), None)
    if given is None:
        return None
    try:
        return "Bearer " + b64decode(given + "=" * (-len(given) % 4), altchars="-_", validate=True).decode("ascii")
    except ValueError as error:
        raise Unauthenticated(
            "Sec-WebSocket-Protocol: Expected `bearer.` and your token in base64url", field="Sec-WebSocket-Protocol"
        ) from error
