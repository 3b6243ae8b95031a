"""Who asks, and what they may: users, roles, scopes, and the middleware before every door that is not public."""

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Annotated, Any, Literal, Protocol, cast, get_args
from urllib.parse import parse_qs
from uuid import UUID

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.enums import HttpMethod, ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, HTTPScope, Receive, Send, WebSocketScope
from litestar.types import Scope as AsgiScope
from msgspec import Meta

from common.errors import Forbidden, Unauthenticated
from common.events import Role
from common.limits import count
from common.settings import Settings

DEV_TOKEN = re.compile(r"dev:([A-Za-z0-9_.@-]{1,64})(?::(buyer|seller|operator))?")
BEARER = re.compile(r"(?i:bearer) +(\S+)")
ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[^/?#@:\s\[\]]+)(?::([0-9]{1,5}))?")
"""Scheme, host and port, and nothing else (RFC 6454)."""
KEY_PREFIX = "boxoffice_"
"""What every API key begins with, so that whoever finds one knows what it is."""

UserId = Annotated[
    str,
    Meta(min_length=1, max_length=255, pattern=r"^[!-~]+(?!\n)$", description="1 to 255 visible ASCII characters"),
]
"""Who somebody is, as the subject of a token of OpenID Connect says: the same at every door."""

ROLES: tuple[Role, ...] = get_args(Role)
"""From who may do least to who may do most."""

Area = Literal["tickets", "orders", "batches", "notifications", "webhooks", "events", "account"]
"""What there are doors to. To what is of an account (its sessions, its keys) only people get, not programs."""

Scope = Literal[
    "tickets:read",
    "tickets:write",
    "orders:read",
    "orders:write",
    "batches:read",
    "batches:write",
    "notifications:read",
    "notifications:write",
    "webhooks:read",
    "webhooks:write",
    "events:read",
    "events:write",
]
"""What an API key may be good for: an area, and whether to change something there."""

SAFE = {HttpMethod.GET, HttpMethod.HEAD, HttpMethod.TRACE}


class User(msgspec.Struct, frozen=True):
    """A person or program that is let in.

    `session`: a person's login; `key`: that of a program, and `scopes` what it is good for (None: all that `role` may).
    `version`: of the user who has this role; a later one may have another.
    """

    id: str
    role: Role = "seller"
    scopes: frozenset[str] | None = None
    key: UUID | None = None
    session: UUID | None = None
    version: int = 0

    def require(self, area: Area | None, role: Role = "buyer", *, write: bool) -> None:
        """Raises Forbidden, and says what is missing."""
        if ROLES.index(self.role) < ROLES.index(role):
            raise Forbidden(f"This is for {role}s, and you are {self.role}.")
        if self.scopes is None or area is None:
            return
        if area == "account":
            raise Forbidden("This is for people who have logged in; an API key does not do.")
        scope = f"{area}:{'write' if write else 'read'}"
        if scope not in self.scopes:
            raise Forbidden(f"The API key lacks the scope {scope}; make one that has it at /api/auth/keys.")


UserRequest = Request[User, Any, State]
"""A request that passed `RequiresUser`: `request.user` is who asks."""


class Credentials(Protocol):
    """Tells who is let in with what the identity service gave them. All raise Unauthenticated, or Unavailable."""

    async def of_access_token(self, token: str, csrf: str | None = None) -> User:
        """Whose an access token is; `csrf`: what came beside it, where a browser sent it by itself."""

    async def of_key(self, key: str) -> User:
        """Whose an API key is."""

    async def of_ticket(self, ticket: str) -> User:
        """Whose the ticket for a WebSocket is, which is spent with that."""

    def remembered(self, shown: str) -> bool:
        """Whether this access token or API key was believed here before, however long ago. Asks nobody."""

    def still(self, user: User) -> User:
        """A user who was let in before, and would be now: nothing was revoked. Asks nobody."""


class Authenticator:
    """Tells from a request who asks: by a bearer in its Authorization header, the cookie of a page, or a ticket."""

    def __init__(self, settings: Settings, credentials: Credentials | None = None) -> None:
        """Without `credentials`, only names for development are believed, where `auth` is `dev`."""
        self._settings = settings
        self._credentials = credentials
        self._bearers = "`Bearer <access token or API key>`" + (
            ", or `Bearer dev:<name>`" if settings.auth == "dev" else ""
        )

    async def user(self, scope: HTTPScope | WebSocketScope) -> User:
        """Raises Unauthenticated and says what would be believed, Forbidden for a page of others, Unavailable."""
        socket = scope["type"] == ScopeType.WEBSOCKET
        if socket:
            self.require_own_page(scope)
        if (authorization := header(scope, b"authorization")) is not None:
            return await self._bearer(scope, authorization)
        if socket:
            return await self._ticket(scope)
        if token := cookie(scope, cookie_name(self._settings, "session")):
            return await self._cookie(scope, token)
        raise Unauthenticated(f"Authorization: Required; say who you are: {self._bearers}", field="Authorization")

    def shown(self, scope: HTTPScope | WebSocketScope) -> str | None:
        """What a request shows to be let in: a bearer, a ticket or a cookie."""
        if (authorization := header(scope, b"authorization")) is not None:
            given = BEARER.fullmatch(authorization)
            return given[1] if given else authorization
        if scope["type"] == ScopeType.WEBSOCKET:
            return ticket_of(scope)
        return cookie(scope, cookie_name(self._settings, "session"))

    def remembers(self, shown: str) -> bool:
        """Whether it was believed here before."""
        return self._credentials is not None and self._credentials.remembered(shown)

    def still(self, user: User) -> None:
        """Raises Unauthenticated if what let this user in was revoked meanwhile."""
        if self._credentials:
            self._credentials.still(user)

    async def _bearer(self, scope: HTTPScope | WebSocketScope, authorization: str) -> User:
        if given := BEARER.fullmatch(authorization):
            token = given[1]
            if self._settings.auth == "dev" and (dev := DEV_TOKEN.fullmatch(token)):
                self._require_own_host(scope)  # a page that reads from where it came says no Origin
                self.require_own_page(scope)
                return developer(self._settings, dev[1], cast(Role | None, dev[2]))
            if self._credentials and token.startswith(KEY_PREFIX):
                return await self._credentials.of_key(token)
            if self._credentials and token.startswith("ey"):
                return await self._credentials.of_access_token(token)
        raise Unauthenticated(f"Authorization: Expected {self._bearers}", field="Authorization")

    async def _ticket(self, scope: WebSocketScope | HTTPScope) -> User:
        given = ticket_of(scope)
        if not (given and self._credentials):
            detail = "ticket: Required; get one by POST /api/auth/ticket, or send an Authorization header"
            raise Unauthenticated(detail, field="ticket")
        return await self._credentials.of_ticket(given)

    async def _cookie(self, scope: HTTPScope | WebSocketScope, token: str) -> User:
        """A browser sends its cookies whoever's page asks; only ours can read what it has to send beside them."""
        if self._credentials is None:
            raise Unauthenticated("The cookie of a login is not believed here.")
        if scope.get("method") in SAFE:
            return await self._credentials.of_access_token(token)
        self.require_own_page(scope)
        csrf = header(scope, b"x-csrf-token")
        if csrf is None:
            name = cookie_name(self._settings, "csrf")
            detail = f"X-CSRF-Token: Required beside a cookie; it is what the cookie {name} holds"
            raise Forbidden(detail, field="X-CSRF-Token")
        return await self._credentials.of_access_token(token, csrf)

    def require_own_page(self, scope: HTTPScope | WebSocketScope) -> None:
        """Raises Forbidden for a page of somebody else's. Browsers always say whose page it is; programs need not."""
        origin = header(scope, b"origin")
        if origin is None:
            return
        if self._settings.public_url:
            ours = self._settings.public_url
        else:  # it is not known under which address pages find us
            self._require_own_host(scope)
            ours = f"{'https' if scope['scheme'] in ('https', 'wss') else 'http'}://{header(scope, b'host') or ''}"
        if (theirs := place_of(origin)) is None or theirs != place_of(ours):
            raise Forbidden(f"Origin: This is for pages of {ours[:80]}, and yours is of {origin[:80]}.")

    def _require_own_host(self, scope: HTTPScope | WebSocketScope) -> None:
        """Raises Forbidden for a name that is not ours: anybody can make a name of theirs lead here (DNS rebinding).

        An address is nobody's name, and browsers always say the Host.
        """
        if (host := header(scope, b"host")) is None:
            return
        place, public = place_of(f"http://{host}"), place_of(self._settings.public_url)
        ours = {self._settings.host.lower(), public[1] if public else ""}
        if place is None or not (is_here(place[1]) or is_address(place[1]) or place[1] in ours):
            mend = "ask for 127.0.0.1, or set BOXOFFICE_PUBLIC_URL to what browsers call this"
            raise Forbidden(f"Host: {host[:80]} is no name of this system; {mend}.")


def ticket_of(scope: HTTPScope | WebSocketScope) -> str | None:
    """The ticket in an address."""
    return parse_qs(scope["query_string"].decode("latin-1")).get("ticket", [None])[0]


def place_of(origin: str) -> tuple[str, str, int] | None:
    """Scheme, host (an IPv6 address without its brackets) and port of an origin; None for what is none."""
    if not (parts := ORIGIN.fullmatch(origin.lower())):
        return None
    scheme, host, port = parts.groups()
    return scheme, host.strip("[]"), int(port or {"http": 80, "https": 443}[scheme])


def is_address(host: str) -> bool:
    """Whether that is an IP address."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_here(host: str) -> bool:
    """Whether that is a name or address by which this machine alone calls itself (RFC 6761)."""
    return host == "localhost" or host.endswith(".localhost") or (is_address(host) and ip_address(host).is_loopback)


class RequiresUser(ASGIMiddleware):
    """Before anything else is looked at, whoever asks has to be known, and may do this.

    What is shown and not believed counts for the address (`refused`); what somebody known may not do, for them. Over
    that rate, keys that were never believed here are refused before identity is asked. Tokens and tickets are looked
    at still, as their signature is verified here: who comes with a new one is not kept out by others who guess.

    A middleware rather than a guard: Litestar 2.25 copies the handler for every call of one.
    """

    scopes = (ScopeType.HTTP, ScopeType.WEBSOCKET)

    def __init__(self, area: Area | None, role: Role = "buyer") -> None:
        """What the doors behind it are to (None: to what is of whoever asks), and who may at least go there."""
        self.area = area
        self.role: Role = role

    async def handle(self, scope: AsgiScope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        state = scope["litestar_app"].state
        writes = scope["type"] == ScopeType.HTTP and self.writes(scope["method"])
        if (user := scope.get("user")) is None:  # a door may ask for more than the others of its controller
            user = scope["user"] = await self._believed(scope, state.authenticator)
        try:
            user.require(self.area, self.role, write=writes)
        except Forbidden:
            count("changes" if writes else "reads", scope, user=user.id, key=user.key and str(user.key))
            raise
        await next_app(scope, receive, send)

    @staticmethod
    async def _believed(scope: AsgiScope, authenticator: Authenticator) -> User:
        """Raises what `Authenticator.user` raises, and TooManyRequests."""
        shown = authenticator.shown(scope)
        if shown and shown.startswith(KEY_PREFIX) and not authenticator.remembers(shown):
            count("refused", scope, look=True)
        try:
            return await authenticator.user(scope)
        except Unauthenticated:
            if shown and not authenticator.remembers(shown):  # what has run out, or was revoked, is no guess
                count("refused", scope)
            raise

    @staticmethod
    def writes(method: str) -> bool:
        """Whether a request changes something."""
        return method not in SAFE


def still_let_in(connection: ASGIConnection[Any, User, Any, State]) -> Callable[[], None]:
    """For a connection that stays open, what raises Unauthenticated once its user's login or key was revoked."""
    authenticator: Authenticator = connection.app.state.authenticator
    return lambda: authenticator.still(connection.user)


def developer(settings: Settings, name: str, role: Role | None) -> User:
    """Who `dev:<name>` or `dev:<name>:<role>` is: by default a seller, or an operator if the settings say so."""
    return User(name, role or ("operator" if name in settings.operator_names else "seller"))


def cookie_name(settings: Settings, what: Literal["session", "refresh", "csrf", "login", "problem"]) -> str:
    """The name of a cookie of ours.

    With `__Host-` (RFC 6265bis) no other host and no page without TLS can have set it; so browsers take it only there.
    """
    return f"{'__Host-' if settings.public_url.startswith('https:') else ''}boxoffice-{what}"


def header(scope: AsgiScope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for each, value in scope["headers"] if each == name), None)


def cookie(scope: AsgiScope, name: str) -> str | None:
    """The value of a cookie, as it was sent: the first of that name. The others may be whatever other pages left.

    With `__Host-` there is one at most; without, browsers send that of the longest path first.
    """
    for pair in (header(scope, b"cookie") or "").split(";"):
        each, _, value = pair.partition("=")
        if each.strip(" \t") == name:
            return value.strip(" \t")
    return None
