"""Who is asking. Until the identity service exists, `Authorization: Bearer dev:<name>` where `BOXOFFICE_AUTH=dev`."""

import re
from typing import Any, Literal

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers.base import BaseRouteHandler

from common.errors import Unauthenticated

DEV_TOKEN = re.compile(r"(?i:bearer) +dev:([A-Za-z0-9_.@-]{1,64})")


class User(msgspec.Struct, frozen=True):
    """A person or program that is let in."""

    id: str


UserRequest = Request[User, Any, State]
"""A request that passed the guard: `request.user` is who asks."""


class Authenticator:
    """Tells from a request's Authorization header who asks."""

    def __init__(self, mode: Literal["dev", "off"]) -> None:
        self._mode = mode

    def user(self, authorization: str | None) -> User:
        """Raises Unauthenticated, and says what would be believed."""
        if self._mode == "off":
            raise Unauthenticated("Nobody can log in here: BOXOFFICE_AUTH is off.")
        if authorization is None:
            raise Unauthenticated("Say who you are: `Authorization: Bearer dev:<name>`.")
        if not (token := DEV_TOKEN.fullmatch(authorization)):
            raise Unauthenticated(
                "This Authorization header is not `Bearer dev:<name>`, with a name of 1 to 64 of A-Z a-z 0-9 _ . @ -"
            )
        return User(token[1])


async def requires_user(connection: ASGIConnection, _: BaseRouteHandler) -> None:  # type: ignore[type-arg]  # Litestar's own
    """A guard: before anything else is looked at, whoever asks has to be known. Async, so that no thread is needed."""
    authenticator: Authenticator = connection.app.state.authenticator
    connection.scope["user"] = authenticator.user(connection.headers.get("authorization"))
