"""Who is asking. Until the identity service exists, `Authorization: Bearer dev:<name>` where `BOXOFFICE_AUTH=dev`."""

import re
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request
from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Meta

from common.errors import Unauthenticated

DEV_TOKEN = re.compile(r"(?i:bearer) +dev:([A-Za-z0-9_.@-]{1,64})")

UserId = Annotated[
    str,
    Meta(min_length=1, max_length=255, pattern=r"^[!-~]+(?!\n)$", description="1 to 255 visible ASCII characters"),
]
"""Who somebody is, as the subject of a token of OpenID Connect says: the same at every door."""


class User(msgspec.Struct, frozen=True):
    """A person or program that is let in."""

    id: str


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
        given = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        try:
            scope["user"] = authenticator.user(None if given is None else given.decode("latin-1"))
        except Unauthenticated as refused:
            if scope["type"] != ScopeType.WEBSOCKET:
                raise
            await refuse(send, refused)
            return
        await next_app(scope, receive, send)


async def refuse(send: Send, refused: Unauthenticated) -> None:
    """Answer to a WebSocket's handshake (ASGI's extension for that); Litestar would answer 403, without a word."""
    content = (b"content-type", b"text/plain; charset=utf-8")
    start: Any = {"type": "websocket.http.response.start", "status": 401, "headers": [content]}
    body: Any = {"type": "websocket.http.response.body", "body": refused.detail.encode()}
    await send(start)
    await send(body)
