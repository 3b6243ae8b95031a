"""HTTP -> logging in and out, and what belongs to an account: logins, API keys, roles."""

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, get_args
from urllib.parse import quote
from uuid import UUID

import asyncpg
import msgspec
from litestar import Controller, Request, Response, delete, get, post, put
from litestar.datastructures import Cookie
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Redirect
from msgspec import Meta

from common.assets import Asset
from common.auth import KEY_PREFIX, RequiresUser, Scope, UserRequest, cookie, cookie_name, place_of
from common.clock import Moment, new_id, now
from common.credentials import digest_of
from common.errors import DomainError, Invalid, NotFound, TooManyRequests, Unauthenticated, Unavailable
from common.events import KeyEvent, Role, UserEvent
from common.headers import SCRIPTS_POLICY
from common.http import LINE, LOCATION_HEADER
from common.limits import Limited, count
from common.paging import Cursor
from common.problems import problems, tell_domain_error
from common.projector import Projected, ReadYourWrites
from common.settings import Settings
from services.identity import people, read_model
from services.identity.domain import (
    DEV,
    MADE_WITHIN,
    MOST_KEYS,
    Account,
    AdmitKey,
    ChangeRole,
    CreateKey,
    EndLogins,
    KeyCommand,
    Keyrings,
    LogIn,
    RevokeKey,
    UserCommand,
    place_id_of,
)
from services.identity.domain import Key as KeyState
from services.identity.logins import LOGIN, DevLogins, Login, Logins
from services.identity.oauth import Callback
from services.identity.read_model import KeyView, SessionView, UserPage, UserView
from services.identity.tokens import TICKET, Issuer

Next = Annotated[str, QueryParameter(name="next", max_length=1000, description="A path of this system")]

LOGIN_LIMIT = Limited("login")

TOLD_SECONDS = 60
"""In which the page comes for what it has to tell."""

NOTHING = ResponseSpec(data_container=None, description="Done", generate_examples=False)
"""An answer without a body, for the documentation."""

BEARER = "Bearer"
"""The type of our access tokens (RFC 6749)."""


class LoginView(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who was let in. A program gets tokens: the access token as a bearer for `expires_in` seconds, the refresh token,
    which is good once, for a new pair. A page gets them as cookies, and `csrf`, to send as X-CSRF-Token.
    """

    user_id: str
    role: Role
    expires_in: int
    access_token: str | None = None
    refresh_token: str | None = None
    csrf: str | None = None
    token_type: str | None = None


class Developer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who you want to be. `page`: with cookies instead of tokens."""

    name: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9_.@-]{1,64}(?!\n)$", description="1 to 64 of A-Z a-z 0-9 _ . @ -", examples=["ada"]),
    ]
    role: Role = "seller"
    page: bool = False


class Renewal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A program's refresh token; a page leaves it out, as it is in a cookie."""

    refresh_token: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None


class Ticket(msgspec.Struct, frozen=True):
    """What opens one WebSocket, within `expires_in` seconds, as its parameter `ticket`."""

    ticket: str
    expires_in: int


class Me(msgspec.Struct, frozen=True):
    """Who asks, and what their provider calls them.

    `scopes`: what the API key is good for that was given; null for a person, who may do all of `role`.
    """

    user_id: str
    name: str | None
    role: Role
    scopes: list[str] | None


class Ways(msgspec.Struct, frozen=True):
    """How people get in: the names of providers, for `/api/auth/login/<name>`; and whether by their word.

    `scopes`: what the keys of programs may be good for.
    """

    providers: list[str]
    dev: bool
    scopes: tuple[Scope, ...] = get_args(Scope)


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An API key to be; without `expires_at` it is good until it is revoked."""

    name: Annotated[str, LINE, Meta(examples=["nightly import"])]
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=len(get_args(Scope)), examples=[["tickets:write"]])]
    expires_at: Moment | None = None


class CreatedKey(msgspec.Struct, frozen=True):
    """An API key. `key` is its secret, which is not shown again."""

    id: UUID
    name: str
    scopes: list[str]
    expires_at: datetime | None
    key: str


class NewRole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user may do from now on."""

    role: Role


VisibleUsers = ReadYourWrites[UserCommand, Account, UserEvent]
VisibleKeys = ReadYourWrites[KeyCommand, KeyState, KeyEvent]


class IdentityDesk(msgspec.Struct, frozen=True):
    """What these doors need."""

    logins: Logins
    developers: DevLogins | None
    issuer: Issuer
    users: VisibleUsers
    keyrings: Keyrings
    keys: VisibleKeys
    projected: Projected
    page: Mapping[str, Asset]
    pool: asyncpg.Pool
    settings: Settings

    def told(self, login: Login) -> Response[LoginView]:
        """The answer to who was let in: a page's cookies, or a program's tokens."""
        if not login.csrf:
            tokens = {"access_token": login.access_token, "refresh_token": login.refresh_token}
            return no_store(LoginView(login.user_id, login.role, login.expires_in, **tokens, token_type=BEARER))
        view = LoginView(login.user_id, login.role, login.expires_in, csrf=login.csrf)
        return no_store(view, self.cookies(login))

    def cookies(self, login: Login) -> list[Cookie]:
        """Those of a page that is let in; only `csrf` can be read by its scripts."""
        left = int((login.expires_at - now()).total_seconds())
        return [
            self.cookie("session", login.access_token, login.expires_in),
            self.cookie("refresh", login.refresh_token, left),
            self.cookie("csrf", login.csrf, left, httponly=False),
        ]

    def cookie(self, what: Any, value: str, seconds: int, **more: Any) -> Cookie:
        """A cookie of ours."""
        return cookie_of(self.settings, what, value, seconds, **more)

    def at_home(self, request: Request[Any, Any, Any], path: str) -> Redirect | None:
        """To the same at the public address, for a browser on this machine that calls it otherwise (localhost).

        Cookies of one name are not sent to the other, and providers send back to the public one.
        """
        public = self.settings.public_url
        # Not where it is https: behind a proxy that has its own name for us, that would go in circles.
        if not public.startswith("http:") or place_of(f"http://{request.headers.get('host')}") == place_of(public):
            return None
        query = request.scope["query_string"].decode("latin-1")
        url = f"{public}{path}{query and '?'}{query}"
        return Redirect(url, status_code=303, headers={"Cache-Control": "no-store"})

    async def up_to_now(self) -> None:
        """Wait until people see what is in the log. Raises Unavailable."""
        if not await self.projected.catch_up():
            raise Unavailable("The read model is behind the log; try again.")

    async def admit(self, key_id: UUID, user_id: str, at: datetime, expires_at: datetime | None) -> None:
        """Count a key that is about to be made. Raises Conflict, Unavailable."""
        ring_id = place_id_of(user_id)
        left = (await self.keyrings.load(ring_id, fresh=True)).state.left(at)
        gone: tuple[UUID, ...] = ()
        if len(left) >= MOST_KEYS:
            await self.up_to_now()
            revoked = await read_model.revoked(self.pool, left)
            gone = tuple(each for each, key in left.items() if revoked.get(each, at - key.at > MADE_WITHIN))
        await self.keyrings.handle(ring_id, AdmitKey(user_id, key_id, gone, at, expires_at))

    def no_cookies(self) -> list[Cookie]:
        """Those by which a browser forgets the others."""
        return [self.cookie(what, "", 0) for what in ("session", "refresh", "csrf")]


def cookie_of(settings: Settings, what: Any, value: str, seconds: int, **more: Any) -> Cookie:
    """A cookie of ours."""
    flags = {"httponly": True, "samesite": "strict", "secure": settings.public_url.startswith("https:"), **more}
    return Cookie(key=cookie_name(settings, what), value=value, path="/", max_age=seconds, **flags)


def no_store(content: Any, cookies: list[Cookie] | None = None, status: int = 200) -> Response[Any]:
    """An answer with secrets in it, that nobody keeps."""
    return Response(content, status_code=status, headers={"Cache-Control": "no-store"}, cookies=cookies or [])


def tell_on_page(request: Request[Any, Any, Any], error: DomainError) -> Redirect:
    """What went wrong, for a person whose browser came back from a provider.

    In a cookie that the page reads once: anybody can write an address, and have us seem to say what is in it.
    """
    told = cookie_of(request.app.state.settings, "problem", quote(error.detail, safe=""), TOLD_SECONDS, httponly=False)
    return Redirect("/login", status_code=303, cookies=[told], headers={"Cache-Control": "no-store"})


TELL_ON_PAGE: Any = {TooManyRequests: tell_domain_error, DomainError: tell_on_page}


class LoginController(Controller):
    """Getting in and out."""

    path = "/api/auth"
    tags = ("auth",)

    @get("/providers", responses=problems(400))
    async def providers(self, desk: NamedDependency[IdentityDesk]) -> Ways:
        """How one can log in here."""
        return Ways(list(desk.logins.providers), desk.developers is not None)

    @get(
        "/login/{provider:str}",
        middleware=[LOGIN_LIMIT],
        status_code=303,
        exception_handlers=TELL_ON_PAGE,
        responses=problems(400, 414),
    )
    async def begin(
        self,
        provider: FromPath[str],
        request: Request[Any, Any, Any],
        desk: NamedDependency[IdentityDesk],
        then: Annotated[
            str, QueryParameter(name="next", max_length=1000, description="A path of this system")
        ] = "/login",
    ) -> Redirect:
        """For browsers: send them to a provider, where they log in, and come back with cookies."""
        if home := desk.at_home(request, f"/api/auth/login/{quote(provider, safe='')}"):
            return home
        url, kept = await desk.logins.begin(provider, then)
        begun = desk.cookie("login", kept, int(LOGIN.total_seconds()), samesite="lax")  # it is sent as they come back
        return Redirect(url, status_code=303, cookies=[begun], headers={"Cache-Control": "no-store"})

    @get(
        "/callback/{provider:str}",
        middleware=[LOGIN_LIMIT],
        include_in_schema=False,
        exception_handlers=TELL_ON_PAGE,
    )
    async def finish(
        self,
        provider: FromPath[str],
        request: Request[Any, Any, Any],
        desk: NamedDependency[IdentityDesk],
    ) -> Redirect:
        """Where a provider sends browsers back to."""
        kept = cookie(request.scope, cookie_name(desk.settings, "login"))
        given = request.query_params
        callback = Callback(given.get("state"), given.get("code"), given.get("error"), given.get("iss"))
        login, then = await desk.logins.finish(provider, callback, kept)
        cookies = [*desk.cookies(login), desk.cookie("login", "", 0)]
        return Redirect(then, status_code=303, cookies=cookies, headers={"Cache-Control": "no-store"})

    @post("/dev", middleware=[LOGIN_LIMIT], status_code=200, responses=problems(400, 404, 413, 415, 503))
    async def developer(
        self, data: JSONBody[Developer], request: Request[Any, Any, Any], desk: NamedDependency[IdentityDesk]
    ) -> Response[LoginView]:
        """Be whoever you say you are; only where BOXOFFICE_AUTH is dev."""
        if desk.developers is None:
            raise NotFound("Nobody is let in here by their word: BOXOFFICE_AUTH is not dev.")
        request.app.state.authenticator.require_own_page(request.scope)
        return desk.told(await desk.developers.log_in(data.name, data.role, page=data.page))

    @post("/refresh", status_code=200, responses=problems(400, 401, 403, 413, 415, 429, 503))
    async def refresh(
        self, data: JSONBody[Renewal], request: Request[Any, Any, Any], desk: NamedDependency[IdentityDesk]
    ) -> Response[LoginView]:
        """Stay: a new pair of tokens for a refresh token, or new cookies for a page, which sends X-CSRF-Token.

        A refresh token is good once. One that comes again after 10 s was stolen, or its successor was: the login ends.
        """
        token, csrf = data.refresh_token, None
        if token is None:
            request.app.state.authenticator.require_own_page(request.scope)
            token = cookie(request.scope, cookie_name(desk.settings, "refresh"))
            csrf = request.headers.get("x-csrf-token", "")
        if token is None:
            raise Unauthenticated("refresh_token: Required; this browser has no cookie of a login either. Log in.")
        try:
            session = desk.issuer.read_refresh(token, now()).sid
        except Unauthenticated:
            count("refused", request.scope)
            raise
        count("login", request.scope, user=str(session))  # for each login: all in an office have one address
        return desk.told(await desk.logins.renew(token, csrf))

    @get("/me", middleware=[RequiresUser(None), Limited("changes")], responses=problems(400, 503))
    async def me(self, request: UserRequest, desk: NamedDependency[IdentityDesk]) -> Response[Me]:
        """Who you are here."""
        user = request.user
        name = await people.name_of(desk.pool, user.id)
        return no_store(Me(user.id, name, user.role, None if user.scopes is None else sorted(user.scopes)))

    @post(
        "/logout",
        status_code=204,
        middleware=[RequiresUser("account"), Limited("changes")],
        responses={204: NOTHING, **problems(400, 503)},
    )
    async def logout(self, request: UserRequest, desk: NamedDependency[IdentityDesk]) -> Response[None]:
        """Get out: nothing of this login is believed any more."""
        if request.user.session:
            await desk.logins.end(request.user.id, request.user.session)
        return Response(None, status_code=204, cookies=desk.no_cookies())

    @post("/ticket", status_code=201, middleware=[RequiresUser(None), Limited("changes")], responses=problems(400, 503))
    async def ticket(self, request: UserRequest, desk: NamedDependency[IdentityDesk]) -> Response[Ticket]:
        """For pages, whose WebSockets can send no header: what opens one, once, within 30 s."""
        ticket = desk.issuer.ticket(request.user, now())
        return no_store(Ticket(ticket, int(TICKET.total_seconds())), status=201)


PAGE_POLICY = f"{SCRIPTS_POLICY}; style-src 'self'; img-src data:"


@get(["/login", "/login/{file:str}"], include_in_schema=False)
async def login_page(
    request: Request[Any, Any, Any], desk: NamedDependency[IdentityDesk], file: FromPath[str] = "login.html"
) -> Response[bytes] | Redirect:
    """The page on which people log in."""
    if file not in desk.page:
        raise NotFound(f"There is nothing at {request.url.path[:80]}.")
    if home := desk.at_home(request, request.scope["path"]):
        return home
    answer = desk.page[file].answer(request)
    answer.headers["Content-Security-Policy"] = PAGE_POLICY
    return answer


@get("/.well-known/jwks.json", tags=["auth"], responses=problems(400))
async def public_keys(desk: NamedDependency[IdentityDesk]) -> dict[str, Any]:
    """With which keys our access tokens are signed (RFC 7517)."""
    return {"keys": desk.issuer.public_keys}


class SessionController(Controller):
    """Your logins."""

    path = "/api/auth/sessions"
    tags = ("auth",)
    middleware = (RequiresUser("account"), Limited("changes"))

    @get("/", responses=problems(400, 503))
    async def list(self, request: UserRequest, desk: NamedDependency[IdentityDesk]) -> list[SessionView]:
        """Where you are logged in, newest first; 100 at most."""
        user = request.user
        listed = await read_model.sessions(desk.pool, user.id, user.session, now())
        if user.session and len(listed) < 100 and not any(each.current for each in listed):  # it was opened just now
            await desk.up_to_now()
            listed = await read_model.sessions(desk.pool, user.id, user.session, now())
        return listed

    @delete("/{session_id:str}", status_code=204, responses=problems(400, 404, 503))
    async def end(self, session_id: FromPath[UUID], request: UserRequest, desk: NamedDependency[IdentityDesk]) -> None:
        """Log out there."""
        await desk.logins.end(request.user.id, session_id)
        await desk.projected.catch_up()


class KeyController(Controller):
    """Keys by which programs act for you."""

    path = "/api/auth/keys"
    tags = ("auth",)
    middleware = (RequiresUser("account"), Limited("changes"))

    @get("/", responses=problems(400, 503))
    async def list(self, request: UserRequest, desk: NamedDependency[IdentityDesk]) -> list[KeyView]:
        """Your keys that are good, newest first."""
        return await read_model.keys(desk.pool, request.user.id, now())

    @post("/", responses=problems(400, 409, 413, 415, 422, 503), response_headers=[LOCATION_HEADER])
    async def create(
        self, data: JSONBody[NewKey], request: UserRequest, desk: NamedDependency[IdentityDesk]
    ) -> Response[CreatedKey]:
        """Make a key. What it is good for are its scopes, and no more than your role may."""
        at, user = now(), request.user
        if data.expires_at and data.expires_at <= at:
            raise Invalid("expires_at: Expected a time to come", field="expires_at", got=data.expires_at.isoformat())
        if user.session is None:  # a developer, of whom nobody has heard before
            await desk.users.handle(place_id_of(user.id), LogIn(DEV, user.id, user.role, user.role, at))
        key_id, secret = new_id(), secrets.token_urlsafe(32)
        scopes = tuple(sorted(set(data.scopes)))
        await desk.admit(key_id, user.id, at, data.expires_at)
        command = CreateKey(key_id, user.id, data.name, scopes, digest_of(secret), at, data.expires_at)
        await desk.keys.handle(key_id, command, new=True)
        created = CreatedKey(key_id, data.name, list(scopes), data.expires_at, f"{KEY_PREFIX}{key_id.hex}_{secret}")
        answer = no_store(created, status=201)
        answer.headers["Location"] = f"/api/auth/keys/{key_id}"
        return answer

    @get("/{key_id:str}", responses=problems(400, 404, 503))
    async def read(self, key_id: FromPath[UUID], request: UserRequest, desk: NamedDependency[IdentityDesk]) -> KeyView:
        """One of your keys."""
        found = [key for key in await read_model.keys(desk.pool, request.user.id, now()) if key.id == key_id]
        if not found:
            raise NotFound("There is no such key of yours.")
        return found[0]

    @delete("/{key_id:str}", status_code=204, responses=problems(400, 404, 503))
    async def revoke(self, key_id: FromPath[UUID], request: UserRequest, desk: NamedDependency[IdentityDesk]) -> None:
        """Let a key be good for nothing any more."""
        await desk.keys.handle(key_id, RevokeKey(request.user.id, now()))


class UserController(Controller):
    """Users, for operators."""

    path = "/api/auth/users"
    tags = ("auth",)
    middleware = (RequiresUser("account", "operator"), Limited("changes"))

    @get("/", responses=problems(400, 503))
    async def list(
        self,
        desk: NamedDependency[IdentityDesk],
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: Cursor = None,
    ) -> UserPage:
        """Who has been here, newest first."""
        return await read_model.users(desk.pool, limit=limit, cursor=cursor)

    @put("/{user_id:str}/role", responses=problems(400, 404, 409, 413, 415, 503))
    async def change_role(
        self,
        user_id: FromPath[str],
        data: JSONBody[NewRole],
        request: UserRequest,
        desk: NamedDependency[IdentityDesk],
    ) -> UserView:
        """Let a user do more, or less, from now on."""
        place = place_id_of(user_id)
        await desk.users.handle(place, ChangeRole(user_id, data.role, request.user.id, now()))
        return await desk.users.find(lambda: read_model.user(desk.pool, place))

    @delete("/{user_id:str}/sessions", status_code=204, responses=problems(400, 404, 503))
    async def end_sessions(
        self, user_id: FromPath[str], request: UserRequest, desk: NamedDependency[IdentityDesk]
    ) -> None:
        """Log a user out everywhere, and revoke all of their keys. They may log in again."""
        await desk.users.handle(place_id_of(user_id), EndLogins(user_id, request.user.id, now()))
