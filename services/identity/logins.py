"""How people get in and out: with a provider, or by their word in development; renewed, ended, ended everywhere."""

import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
import msgspec
import structlog

from common.auth import User
from common.clock import new_id, now
from common.credentials import csrf_digest, spend
from common.errors import DomainError, Forbidden, Invalid, NotFound, Unauthenticated
from common.event_log import EventLog
from common.events import Role
from common.postgres import POSTGRES_FAILED
from common.settings import BadSetting
from services.identity import people
from services.identity.domain import (
    DEV,
    NO_LONGER,
    EndSession,
    LogIn,
    OpenSession,
    RefreshSession,
    Sessions,
    Users,
    place_id_of,
    user_id_of,
)
from services.identity.id_token import same
from services.identity.oauth import Callback, Identity, LoginOptions, OAuthService
from services.identity.sealing import CannotOpen, Sealer
from services.identity.settings import IdentitySettings
from services.identity.tokens import ACCESS, Issuer
from services.identity.vouching import Vouching

LOGIN = timedelta(minutes=10)
"""In which somebody has to come back from the provider."""

log = structlog.get_logger()


class Begun(msgspec.Struct, frozen=True):
    """A login that a browser has begun: what it keeps of it, sealed. `then`: where it goes afterwards."""

    options: LoginOptions
    then: str
    at: datetime


class Login(msgspec.Struct, frozen=True):
    """What somebody is given who is let in. `csrf`: what a page sends beside its cookie; empty for a program."""

    user_id: str
    role: Role
    session_id: UUID
    access_token: str
    refresh_token: str
    csrf: str
    expires_at: datetime

    @property
    def expires_in(self) -> int:
        """Seconds that the access token is good for."""
        return int(ACCESS.total_seconds())


class Logins:
    """Lets people in with a provider, and lets them stay."""

    def __init__(
        self,
        issuer: Issuer,
        users: Users,
        sessions: Sessions,
        providers: Mapping[str, OAuthService],
        sealer: Sealer | None,
        vouching: Vouching,
        event_log: EventLog,
        pool: asyncpg.Pool,
        settings: IdentitySettings,
    ) -> None:
        """`sealer` may be missing where there are no providers."""
        self.providers = providers
        self._issuer = issuer
        self._users = users
        self._sessions = sessions
        self._sealer = sealer
        self._vouching = vouching
        self._log = event_log
        self._pool = pool
        self._settings = settings

    # --- in

    async def begin(self, name: str, then: str) -> tuple[str, str]:
        """Where to send the browser, and what it is to keep meanwhile. Raises NotFound, Invalid, Unavailable."""
        provider, sealer = self._provider(name)
        options = LoginOptions.new(f"{self._settings.public_url}/api/auth/callback/{name}")
        begun = msgspec.json.encode(Begun(options, own_path(then), now())).decode()
        return await provider.authorization_url(options), sealer.seal(begun, "login", name)

    async def finish(self, name: str, callback: Callback, kept: str | None) -> tuple[Login, str]:
        """Let in who comes back from a provider; and where they wanted to go.

        Raises what `OAuthService.exchange_code` raises, and Unauthenticated for a login that this browser did not begin
        with this provider, or that came back before.
        """
        provider, sealer = self._provider(name)
        try:
            begun = msgspec.json.decode(sealer.open(kept or "", "login", name), type=Begun)
        except CannotOpen:
            detail = "This browser has begun no such login, or has no cookies of it any more; begin again."
            raise Unauthenticated(detail) from None
        if now() - begun.at > LOGIN:
            raise Unauthenticated("This login was begun too long ago; begin again.")
        if callback.state is None or not same(callback.state, begun.options.state):  # and the login goes on
            raise Unauthenticated("This is not the login that your browser began last (state); begin again.")
        await spend(self._log, "login", begun.options.state)
        found = await provider.exchange_code(callback, begun.options)
        identity = found.identity
        runs_it = identity.email_verified and self._settings.runs_it(identity.email)
        role: Role | None = "operator" if runs_it else None
        login = await self.let_in(name, identity, role, secrets.token_urlsafe(32))
        sealed = sealer.seal(found.refresh_token, login.user_id) if found.refresh_token else None
        await people.keep(self._pool, login.user_id, name, identity, sealed, now())
        return login, begun.then

    async def let_in(self, provider: str, identity: Identity, role: Role | None, csrf: str) -> Login:
        """Open a session for somebody for whom `provider` vouches. `role`, `csrf`: as in LogIn and Login."""
        at, session_id = now(), new_id()
        user_id = user_id_of(identity.issuer, identity.subject)
        log_in = LogIn(identity.issuer, identity.subject, role, self._settings.new_role, at)
        account = await self._users.handle(place_id_of(user_id), log_in)
        expires_at = at + timedelta(days=self._settings.session_days)
        await self._sessions.handle(session_id, OpenSession(session_id, user_id, provider, at, expires_at), new=True)
        log.info("logged_in", user_id=user_id, provider=provider, session_id=str(session_id))
        user = User(user_id, account.state.role, session=session_id, version=account.version)
        return self._login(user, 0, csrf, csrf and csrf_digest(csrf), expires_at)

    def _login(self, user: User, generation: int, csrf: str, digest: str, expires_at: datetime) -> Login:
        assert user.session, "people have sessions"
        at = now()
        access = self._issuer.access(user, digest, at)
        refresh = self._issuer.refresh(user.id, user.session, generation, digest, at, expires_at)
        return Login(user.id, user.role, user.session, access, refresh, csrf, expires_at)

    def _provider(self, name: str) -> tuple[OAuthService, Sealer]:
        """Raises NotFound."""
        if name not in self.providers or self._sealer is None:
            there = ", ".join(self.providers) or "none"
            raise NotFound(f"There is no provider {name!r} to log in with; there are: {there}.")
        return self.providers[name], self._sealer

    # --- renewed

    async def renew(self, refresh_token: str, csrf: str | None) -> Login:
        """A new pair of tokens for a refresh token, which is good once.

        `csrf`: what a page sent beside its cookie; None for a program, which sent the token itself. Raises
        Unauthenticated, Forbidden for a page of others, Unavailable.
        """
        at = now()
        claims = self._issuer.read_refresh(refresh_token, at)
        if csrf is None and claims.csrf:
            raise Unauthenticated("The refresh token is not believed: it is that of a page's cookie.")
        if csrf is not None and not secrets.compare_digest(csrf_digest(csrf), claims.csrf):
            raise Forbidden("X-CSRF-Token: It does not belong to this login", field="X-CSRF-Token")
        assert claims.sid, "refresh tokens are of sessions"
        session = (await self._sessions.handle(claims.sid, RefreshSession(claims.gen, at))).state
        if session.ended or session.expires_at is None:
            log.warning("refresh_token_reused", user_id=session.user_id, session_id=str(claims.sid))
            raise Unauthenticated(
                "This refresh token was used before, so somebody else may have it: the login has ended. Log in again."
            )
        if session.provider == DEV and self._settings.auth != "dev":
            raise Unauthenticated(NO_LONGER)
        account = await self._users.load(place_id_of(session.user_id), fresh=True)
        account.state.let_in_since(session.at)
        self._vouching.ask(session.user_id)
        user = User(session.user_id, account.state.role, session=claims.sid, version=account.version)
        return self._login(user, session.generation, csrf or "", claims.csrf, session.expires_at)

    # --- out

    async def end(self, user_id: str, session_id: UUID) -> None:
        """End a login; when it was the last of its user, the provider is told to forget its token. Raises NotFound."""
        await self._sessions.handle(session_id, EndSession(user_id, "logout", now()))
        with suppress(DomainError, CannotOpen, *POSTGRES_FAILED):
            await self._revoke(user_id, session_id)

    async def _revoke(self, user_id: str, session_id: UUID) -> None:
        others = await self._pool.fetchval(OTHERS, user_id, session_id, now())
        vouched = None if others else await people.vouched(self._pool, user_id)
        if self._sealer and vouched and (provider := self.providers.get(vouched.provider)):
            await people.forget_token(self._pool, user_id)
            await provider.revoke(self._sealer.open(vouched.sealed, user_id))


OTHERS = """
select count(*) from sessions where user_id = $1 and id <> $2 and ended is null and expires_at > $3
"""


class DevLogins:
    """Lets in whoever says who they are."""

    def __init__(self, logins: Logins, settings: IdentitySettings) -> None:
        """Raises BadSetting where that is not for development."""
        if settings.auth != "dev":
            raise BadSetting(f"BOXOFFICE_AUTH={settings.auth!r}: Whoever says who they are is let in with 'dev' only")
        self._logins = logins

    async def log_in(self, name: str, role: Role, *, page: bool) -> Login:
        """Let them in; `page`: with a cookie."""
        return await self._logins.let_in(DEV, Identity(DEV, name), role, secrets.token_urlsafe(32) if page else "")


def own_path(text: str) -> str:
    """A path of ours to go to afterwards. Raises Invalid for an address of somebody else's, however it is written."""
    if not (text.startswith("/") and text.isascii() and text.isprintable()) or text.startswith(("//", "/\\")):
        raise Invalid("next: Expected a path of this system, such as /", field="next", got=text[:80])
    return text
