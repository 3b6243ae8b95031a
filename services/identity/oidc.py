"""Any provider of OpenID Connect: found by its issuer, asked by code and PKCE, and believed by its signature alone."""

import asyncio
import base64
import ipaddress
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any, Generic, NoReturn, Self, TypeVar
from urllib.parse import quote_plus, urlsplit

import httpx
import msgspec
from authlib.oauth2.rfc6749.parameters import (  # type: ignore[import-untyped]  # authlib has no types
    prepare_grant_uri,
    prepare_token_request,
)
from authlib.oauth2.rfc7009 import (  # type: ignore[import-untyped]  # authlib has no types
    prepare_revoke_token_request,
)
from authlib.oauth2.rfc7636 import (  # type: ignore[import-untyped]  # authlib has no types
    create_s256_code_challenge,
)
from joserfc.jwk import Key
from msgspec import Meta

from common.errors import Invalid, Unauthenticated, Unavailable
from common.settings import BadSetting, without_password
from services.identity import id_token
from services.identity.id_token import Claims, same
from services.identity.oauth import Callback, Identity, LoggedIn, LoginOptions, Refreshed

GOOGLE = "https://accounts.google.com"

SECONDS = 10.0
"""That a provider may take for one answer."""

ANSWER_BYTES = 256 * 1024
"""Of an answer at most; Google's largest has 2 KiB."""

FRESH_SECONDS = 3600.0
"""For which what a provider says of itself is good: a key that it takes back is believed no longer."""

KEYS_SECONDS = 60.0
"""Before which keys are not fetched again, however many tokens name one that is not there."""

TEXT_LENGTH = 320
"""Characters of a name or an email address that are taken."""

CODE = re.compile(r"[ -~]{1,4096}")
"""What a provider gives to be exchanged (RFC 6749, A.11); no longer than any of them makes it."""

TOKEN_LENGTH = 8192
"""Characters of a refresh token at most: it is kept."""

BEARER = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""An access token (RFC 6750, 2.1)."""

OTHERS_REFUSED = {
    "access_denied": "You said no there, or may not log in here. Log in again if that was a mistake.",
    "login_required": "It wants you to log in there first.",
    "interaction_required": "It has something to ask you first; log in there.",
    "consent_required": "It needs you to agree that we learn who you are.",
    "account_selection_required": "It wants you to choose an account first.",
}
"""What a provider may answer the browser (RFC 6749, 4.1.2.1; OpenID Connect Core, 3.1.2.6), for who reads it."""

TRY_LATER = frozenset({"server_error", "temporarily_unavailable"})
MISCONFIGURED = frozenset(
    {
        *("invalid_client", "unauthorized_client", "invalid_scope", "unsupported_grant_type"),
        *("unsupported_response_type", "redirect_uri_mismatch"),  # the last one is Google's
    }
)
NOT_TAKEN = frozenset({"invalid_grant", "invalid_request", "invalid_token"})

T = TypeVar("T")


ProviderName = Annotated[
    str, Meta(pattern=r"^[a-z0-9-]{1,32}(?!\n)$", description="1 to 32 of a-z 0-9 -, as it is a part of addresses")
]


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A provider, as it knows us. `name` is what people call it.

    `offline_access` among the scopes asks for a refresh token where a provider gives none without, and for consent
    each time, as OpenID Connect Core 11 has it. Google knows no such scope; it is asked in its own way.
    """

    name: ProviderName
    issuer: str
    client_id: str
    client_secret: str
    scopes: tuple[str, ...] = ("openid", "email", "profile")


class Discovered(msgspec.Struct, frozen=True):
    """What of a discovery document is used (OpenID Connect Discovery, 3; RFC 8414, 2; RFC 9207, 3)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    revocation_endpoint: str | None = None
    userinfo_endpoint: str | None = None
    token_endpoint_auth_methods_supported: list[str] | None = None
    code_challenge_methods_supported: list[str] | None = None
    authorization_response_iss_parameter_supported: bool = False

    @property
    def endpoints(self) -> list[str]:
        optional = (self.revocation_endpoint, self.userinfo_endpoint)
        needed = (self.authorization_endpoint, self.token_endpoint, self.jwks_uri)
        return [*needed, *(each for each in optional if each is not None)]

    @property
    def takes_secret_in_body(self) -> bool:
        """Whether it takes our secret there and not in the header, where it would be otherwise."""
        methods = self.token_endpoint_auth_methods_supported or []
        return "client_secret_post" in methods and "client_secret_basic" not in methods


class Tokens(msgspec.Struct, frozen=True):
    """What a token endpoint answers."""

    id_token: str | None = None
    access_token: str | None = None
    refresh_token: Annotated[str, Meta(max_length=TOKEN_LENGTH)] | None = None


class UserInfo(msgspec.Struct, frozen=True):
    """What a provider says of whom an access token is about (OpenID Connect Core, 5.3.2)."""

    sub: str
    email: Any = None
    email_verified: Any = False
    name: Any = None


class Failure(msgspec.Struct, frozen=True):
    """The error that it answers otherwise. Its description is for whoever wrote the client, and may hold anything."""

    error: str


class Refused(Exception):
    """A token endpoint said no; which of the words that there are for it, or none of them."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


class OidcProvider:
    """One provider. Nothing is asked of it before somebody logs in: it may be away while we start."""

    def __init__(
        self,
        settings: ProviderSettings,
        *,
        seconds: float = SECONDS,
        trust: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`seconds`: for an answer. `trust`: whose certificates are believed. `clock`: for how long things are kept.

        `now`: seconds since 1970. Raises BadSetting.
        """
        self.settings = settings
        self._loopback = is_loopback(settings.issuer)
        if not self._is_safe(settings.issuer) or urlsplit(settings.issuer).query:
            raise BadSetting(
                f"The issuer of {settings.name} is {without_password(settings.issuer)!r}: expected an address that"
                " begins with https:// (http:// for one on this machine), as the provider's documentation has it"
            )
        if "openid" not in settings.scopes:
            raise BadSetting(f"The scopes of {settings.name}: `openid` has to be among them")
        self._seconds, self._now = seconds, now
        self._client = httpx.AsyncClient(verify=trust or True, timeout=seconds, headers={"Accept-Encoding": "identity"})
        self._discovered = Kept(self._discover, clock)
        self._keys = Kept(self._fetch_keys, clock)

    async def authorization_url(self, options: LoginOptions) -> str:
        """As OAuthService."""
        there = await self._discovered.get(FRESH_SECONDS)
        url: str = prepare_grant_uri(
            there.authorization_endpoint,
            self.settings.client_id,
            "code",
            redirect_uri=options.redirect_uri,
            scope=self.settings.scopes,
            state=options.state,
            nonce=options.nonce,
            code_challenge=create_s256_code_challenge(options.code_verifier),
            code_challenge_method="S256",
            **for_refresh_token(self.settings),
        )
        return url

    async def exchange_code(self, callback: Callback, options: LoginOptions) -> LoggedIn:
        """As OAuthService."""
        if callback.state is None or not same(callback.state, options.state):
            raise Unauthenticated("This is not the login that your browser began (state). Log in again.")
        there = await self._discovered.get(FRESH_SECONDS)
        if callback.iss is None and there.authorization_response_iss_parameter_supported:
            raise Unauthenticated("The answer does not say which provider it is from (iss). Log in again.")
        if callback.iss not in (None, self.settings.issuer):
            raise Unauthenticated("The answer is from another provider than the one you chose (iss). Log in again.")
        if callback.error is not None:
            self._tell_refusal(callback.error)
        if callback.code is None or not CODE.fullmatch(callback.code):
            raise Invalid(f"{self.settings.name} sent no code that we could ask it with. Log in again.")
        try:
            tokens = await self._tokens(
                there,
                prepare_token_request(
                    "authorization_code",
                    redirect_uri=options.redirect_uri,
                    code=callback.code,
                    code_verifier=options.code_verifier,
                ),
            )
        except Refused as refusal:
            raise self._not_taken(refusal, "this login; a code serves once, and not for long. Log in again.") from None
        if tokens.id_token is None:
            raise id_token.refused("is missing")
        claims = await self._verified(tokens.id_token, tokens.access_token)
        id_token.check_login(claims, nonce=options.nonce)
        return LoggedIn(await self._identity(there, claims, tokens.access_token), tokens.refresh_token or None)

    async def refresh(self, token: str, subject: str) -> Refreshed:
        """As OAuthService."""
        there = await self._discovered.get(FRESH_SECONDS)
        try:
            tokens = await self._tokens(there, prepare_token_request("refresh_token", refresh_token=token))
        except Refused as refusal:
            raise self._not_taken(refusal, "that you are logged in. Log in again.") from None
        kept = tokens.refresh_token or token
        if tokens.id_token is None:  # it need not give one (OpenID Connect Core, 12.2)
            if tokens.access_token is None:
                raise self._unavailable("its answer holds no token")
            return Refreshed(kept, None)
        claims = await self._verified(tokens.id_token, tokens.access_token)
        if claims.sub != subject:
            raise id_token.refused("is about somebody else")
        return Refreshed(kept, await self._identity(there, claims, tokens.access_token))

    async def revoke(self, token: str) -> bool:
        """As OAuthService (RFC 7009). What it does not know is forgotten already."""
        there = await self._discovered.get(FRESH_SECONDS)
        if there.revocation_endpoint is None:
            return False
        form, _ = prepare_revoke_token_request(token, "refresh_token")
        try:
            await self._post(there, there.revocation_endpoint, form)
        except Refused as refusal:
            if refusal.error not in ("invalid_token", "invalid_grant"):  # so says Google instead of nothing
                raise self._unavailable(f"it refused to revoke ({refusal.error})") from None
        return True

    async def _verified(self, token: str, access_token: str | None) -> Claims:
        header = id_token.header_of(token)
        key = id_token.key_for(header, await self._keys.get(FRESH_SECONDS))
        key = key or id_token.key_for(header, await self._keys.get(KEYS_SECONDS))
        if key is None:
            raise id_token.refused("is signed with a key that the provider does not publish")
        claims = id_token.claims_of(token, key)
        id_token.check(claims, issuer=self.settings.issuer, client_id=self.settings.client_id, now=self._now())
        id_token.check_access_token(claims, header, access_token)
        return claims

    async def _identity(self, there: Discovered, claims: Claims, access_token: str | None) -> Identity:
        told: Claims | UserInfo = claims
        is_thin = claims.email is None and claims.name is None
        if is_thin and there.userinfo_endpoint is not None and access_token is not None:
            told = await self._user_info(there.userinfo_endpoint, access_token)
            if told.sub != claims.sub:
                raise Unauthenticated(f"{self.settings.name} tells of somebody else than who logged in. Log in again.")
        email = text_of(told.email)
        verified = told.email_verified is True and email is not None
        return Identity(self.settings.issuer, claims.sub, email, verified, text_of(told.name))

    async def _user_info(self, url: str, access_token: str) -> UserInfo:
        """What some providers leave out of the ID token, as they may (OpenID Connect Core, 5.4)."""
        if not BEARER.fullmatch(access_token):
            raise self._unavailable("its access token cannot be used")
        try:
            return msgspec.json.decode(await self._get(url, Authorization=f"Bearer {access_token}"), type=UserInfo)
        except (ValueError, RecursionError):
            raise self._unavailable("what it says of you cannot be read") from None

    def _tell_refusal(self, error: str) -> NoReturn:
        name = self.settings.name
        if error in TRY_LATER:
            raise self._unavailable("it says so itself")
        if error in MISCONFIGURED:
            raise self._misconfigured(error)
        raise Invalid(f"{name} did not log you in. {OTHERS_REFUSED.get(error, 'It does not say why; log in again.')}")

    def _not_taken(self, refusal: Refused, what: str) -> Unauthenticated | Unavailable:
        if refusal.error in MISCONFIGURED:
            return self._misconfigured(refusal.error)
        if refusal.error in TRY_LATER:
            return self._unavailable("it says so itself")
        return Unauthenticated(f"{self.settings.name} does not confirm {what}")

    def _misconfigured(self, error: str) -> Unavailable:
        return Unavailable(
            f"Nobody can log in with {self.settings.name}: it does not take our client id, secret, address or scopes"
            f" ({error}). Whoever runs this has to compare them with what is registered there."
        )

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(f"{self.settings.name} cannot be asked who you are now: {why}. Try again in a moment.")

    async def _tokens(self, there: Discovered, form: str) -> Tokens:
        """Raises Refused, Unavailable."""
        body = await self._post(there, there.token_endpoint, form)
        try:
            return msgspec.json.decode(body, type=Tokens)
        except (ValueError, RecursionError):
            raise self._unavailable("its answer holds no tokens") from None

    async def _post(self, there: Discovered, url: str, form: str) -> bytes:
        """What it answers when it does as it is asked. Raises Refused, Unavailable."""
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        us = [quote_plus(each) for each in (self.settings.client_id, self.settings.client_secret)]  # RFC 6749, 2.3.1
        if there.takes_secret_in_body:
            form += "&client_id={}&client_secret={}".format(*us)
        else:
            headers["Authorization"] = "Basic " + base64.b64encode(":".join(us).encode()).decode()
        status, body = await self._ask("POST", url, headers=headers, content=form)
        if status == httpx.codes.OK:
            return body
        if status in (httpx.codes.BAD_REQUEST, httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            with suppress(ValueError, RecursionError):
                error = msgspec.json.decode(body, type=Failure).error
                raise Refused(error if error in TRY_LATER | MISCONFIGURED | NOT_TAKEN else "for a reason of its own")
        raise self._unavailable(f"it answered {status}")

    async def _discover(self) -> Discovered:
        body = await self._get(self.settings.issuer.removesuffix("/") + "/.well-known/openid-configuration")
        try:
            there = msgspec.json.decode(body, type=Discovered)
        except (ValueError, RecursionError):
            raise self._unavailable("its discovery document is none") from None
        if there.issuer != self.settings.issuer:
            raise self._unavailable("its discovery document is that of another issuer")
        if not all(self._is_safe(each) for each in there.endpoints):
            raise self._unavailable("its discovery document leads to addresses that are not safe")
        if there.code_challenge_methods_supported is not None and "S256" not in there.code_challenge_methods_supported:
            raise self._unavailable("it does not know PKCE with S256")
        return there

    async def _fetch_keys(self) -> list[Key]:
        there = await self._discovered.get(FRESH_SECONDS)
        try:
            return id_token.keys_in(await self._get(there.jwks_uri))
        except (ValueError, RecursionError):
            raise self._unavailable("its keys cannot be read") from None

    async def _get(self, url: str, **headers: str) -> bytes:
        status, body = await self._ask("GET", url, headers={"Accept": "application/json", **headers})
        if status != httpx.codes.OK:
            raise self._unavailable(f"it answered {status}")
        return body

    async def _ask(self, method: str, url: str, **request: Any) -> tuple[int, bytes]:
        """Status and body of an answer; redirects are not followed. Raises Unavailable."""
        try:
            async with asyncio.timeout(self._seconds), self._client.stream(method, url, **request) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise self._unavailable("its answer is compressed, which was not asked for")
                body = b""
                async for block in response.aiter_raw():
                    body += block
                    if len(body) > ANSWER_BYTES:
                        raise self._unavailable(f"its answer is larger than {ANSWER_BYTES} bytes")
                return response.status_code, body
        except (TimeoutError, httpx.TimeoutException):
            raise self._unavailable(f"it did not answer within {self._seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unavailable(f"no connection ({type(error).__name__})") from error

    def _is_safe(self, url: str) -> bool:
        """Whether what is said there stays between us: https, or this machine when the provider is on it."""
        try:
            parts = urlsplit(url)
            named = bool(parts.hostname) and parts.port != 0
        except ValueError:
            return False
        if not named or "@" in parts.netloc or "#" in url or not url.isascii() or not url.isprintable():
            return False
        return parts.scheme == "https" or (parts.scheme == "http" and self._loopback and is_loopback(url))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()


def for_refresh_token(settings: ProviderSettings) -> dict[str, str]:
    """What is asked for so that there will be a refresh token.

    Google gives one with the first consent only. It is not asked for consent each time: nobody likes to be asked again,
    the first token stays good, and who revokes it is asked at the next login, which brings a new one.
    """
    if settings.issuer == GOOGLE:
        return {"access_type": "offline"}
    return {"prompt": "consent"} if "offline_access" in settings.scopes else {}


class Kept(Generic[T]):
    """Something that is fetched when it is needed, once for everybody who waits for it, and kept for a while."""

    def __init__(self, fetch: Callable[[], Awaitable[T]], clock: Callable[[], float]) -> None:
        self._fetch, self._clock = fetch, clock
        self._kept: tuple[T, float] | None = None
        self._fetching: asyncio.Task[T] | None = None

    async def get(self, seconds: float) -> T:
        """As it was at most so many seconds ago. Raises what `fetch` does."""
        if self._kept and self._clock() - self._kept[1] < seconds:
            return self._kept[0]
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._refetch())
            self._fetching.add_done_callback(self._fetched)
        return await asyncio.shield(self._fetching)

    async def _refetch(self) -> T:
        value = await self._fetch()
        self._kept = value, self._clock()
        return value

    def _fetched(self, task: asyncio.Task[T]) -> None:
        self._fetching = None
        if not task.cancelled():
            task.exception()  # whoever waits is told; if nobody does any more, asyncio shall not complain


def is_loopback(url: str) -> bool:
    """Whether an address leads to this machine and to no other, whoever is asked for names."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def text_of(claim: object) -> str | None:
    """What somebody is called, if it can be shown."""
    is_shown = isinstance(claim, str) and 0 < len(claim) <= TEXT_LENGTH and claim.isprintable()
    return claim if is_shown and isinstance(claim, str) else None
