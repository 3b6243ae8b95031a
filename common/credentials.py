"""What the identity service gave, verified where it is shown: access tokens, API keys and tickets for WebSockets."""

import asyncio
import secrets
from base64 import urlsafe_b64encode
from collections import OrderedDict
from contextlib import aclosing
from datetime import datetime
from hashlib import sha256
from typing import Generic, Literal, TypeVar
from uuid import UUID, uuid5

import msgspec
import structlog
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from common.auth import KEY_PREFIX, User, UserId
from common.clock import now
from common.errors import Forbidden, Unauthenticated, Unavailable
from common.event_log import Draft, EventLog, WrongSequence
from common.events import Revoked, Role, Spent
from common.requests import Asks
from common.requests.identity import CHECK_KEY, PUBLIC_KEYS, GivenKey, WantedKeys
from common.topology import BELIEVED_SECONDS

ISSUER = "boxoffice"
ALGORITHMS = ["ES256"]
"""With which our tokens are signed, and no others are believed."""

Use = Literal["access", "refresh", "ticket"]
"""What a token is for: its audience. One for something else is not believed."""

KEPT = 20_000
"""Tokens and keys that were verified and are remembered, each; the least recently used are verified again."""

KEY_SECONDS = 60.0
"""For so long an API key is believed before identity is asked again. That it was revoked is heard at once."""

KEYS_SECONDS = 300.0
"""After so long the public keys are asked for again: one that was withdrawn is believed so long at most."""

ASK_AGAIN_SECONDS = 5.0
"""A key that nobody knows is asked for so often at most: whoever makes them up costs nothing."""

NAMESPACE = UUID("3b1f1d0e-87b6-5a4e-9f0c-2f8e4b8d6a10")

V = TypeVar("V")

log = structlog.get_logger()


class Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a token of ours says (RFC 7519). `sid`: the session; `gen`: which refresh token of it this is.

    `csrf`: SHA-256 of what a page sends beside the cookie in which this is. Times are seconds since 1970.
    """

    aud: Use
    exp: float
    iat: float
    jti: str
    iss: str = ""
    sub: UserId = "-"
    role: Role = "buyer"
    sid: UUID | None = None
    kid: UUID | None = None
    gen: int = 0
    csrf: str = ""
    scopes: list[str] | None = None

    @property
    def user(self) -> User:
        """Whom it lets in."""
        scopes = None if self.scopes is None else frozenset(self.scopes)
        return User(self.sub, self.role, scopes, self.kid, self.sid)


def csrf_digest(csrf: str) -> str:
    """What a token says of the secret that comes beside it."""
    return urlsafe_b64encode(sha256(csrf.encode()).digest()).rstrip(b"=").decode()


def verified(token: str, keys: KeySet, use: Use, at: datetime) -> Claims:
    """The claims of a token of ours. Raises Unauthenticated."""
    try:
        found = jwt.decode(token, keys, algorithms=ALGORITHMS)
        claims = msgspec.convert(found.claims, Claims)
    except (JoseError, ValueError, msgspec.ValidationError) as error:
        raise Unauthenticated(f"The {use} token is not believed: it is none of ours.") from error
    if claims.iss != ISSUER or claims.aud != use or found.header.get("typ") != f"{use}+jwt":
        raise Unauthenticated(f"The {use} token is not believed: it is for something else.")
    if claims.exp <= at.timestamp():
        raise Unauthenticated(f"The {use} token is not believed any more: it has expired.")
    return claims


def digest_of(secret: str) -> str:
    """What is kept of an API key's secret, which has 256 random bits: a fast hash is enough."""
    return sha256(secret.encode()).hexdigest()


def fact_id_of(what: str, whose: str) -> UUID:
    """The id of a fact about something that is named by text, such as that it was revoked."""
    return uuid5(NAMESPACE, f"{what} {whose}")


async def spend(event_log: EventLog, what: Literal["login", "ticket"], token: str) -> None:
    """Use up what may be used once, by its `jti`. Raises Unauthenticated if it was used before; Unavailable."""
    draft = Draft.of(Spent(what=what, at=now()))
    try:
        await event_log.append(f"spent.{fact_id_of(what, token)}", [draft], expected=0)
    except WrongSequence:
        raise Unauthenticated(f"This {what} was used before; begin again.") from None


class Recent(Generic[V]):
    """The most recently used values, by what they belong to."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[str, V] = OrderedDict()

    def get(self, name: str) -> V | None:
        if (value := self._values.get(name)) is not None:
            self._values.move_to_end(name)
        return value

    def put(self, name: str, value: V) -> None:
        self._values[name] = value
        if len(self._values) > self._limit:
            self._values.popitem(last=False)


class Holder(msgspec.Struct, frozen=True):
    """Whom something lets in. `issued`: since when; `until`: seconds since 1970 after which it is looked at again."""

    user: User
    issued: float
    until: float
    csrf: str = ""


class IssuedCredentials:
    """Verifies what the identity service issued, with its public keys; hears what was revoked. A worker.

    Tokens are verified here, without asking anybody; of API keys identity is asked once a minute. While the log cannot
    be reached, what was revoked meanwhile is believed for as long as it lives: minutes.
    """

    def __init__(self, event_log: EventLog, requests: Asks) -> None:
        self.name = "credentials"
        self.problem: str | None = "it is not known yet what was revoked"
        self._log = event_log
        self._requests = requests
        self._keys = KeySet([])
        self._asked = float("-inf")
        self._asking = asyncio.Lock()
        self._tokens: Recent[Holder] = Recent(KEPT)
        self._api_keys: Recent[Holder] = Recent(KEPT)
        self._revoked: dict[tuple[str, str], float] = {}

    async def run(self) -> None:
        """Follow what is revoked until cancelled."""
        position = (await self._log.end("REVOKED")).sequence
        if not position:
            self.problem = None
        async with aclosing(self._log.follow("REVOKED")) as batches:
            async for batch in batches:
                for recorded in batch:
                    assert isinstance(recorded.event, Revoked)
                    self._revoked[recorded.event.what, recorded.event.whose] = recorded.event.at.timestamp()
                self._forget(now().timestamp() - BELIEVED_SECONDS)
                if batch[-1].sequence >= position:
                    self.problem = None

    async def of_access_token(self, token: str, csrf: str | None = None) -> User:
        """Whose an access token is. Raises Unauthenticated, Unavailable; Forbidden for a wrong `csrf`."""
        holder, at = self._tokens.get(token), now()
        if holder is None or at.timestamp() >= holder.until:
            claims = await self._verified(token, "access")
            holder = Holder(claims.user, claims.iat, claims.exp, claims.csrf)
            self._tokens.put(token, holder)
        if csrf is not None and not secrets.compare_digest(csrf_digest(csrf), holder.csrf):
            raise Forbidden("X-CSRF-Token: It does not belong to this login", field="X-CSRF-Token")
        return self._still(holder)

    async def of_key(self, key: str) -> User:
        """Whose an API key is. Raises Unauthenticated, Unavailable."""
        key_id, secret = parts_of(key)
        digest = digest_of(secret)
        holder, at = self._api_keys.get(digest), now().timestamp()
        if holder is None or at >= holder.until:
            found = await self._requests.ask(CHECK_KEY, GivenKey(key_id, digest))
            user = User(found.user_id, found.role, frozenset(found.scopes), key=key_id)
            until = at + KEY_SECONDS
            if found.expires_at:
                until = min(until, found.expires_at.timestamp())
            holder = Holder(user, at, until)
            self._api_keys.put(digest, holder)
        return self._still(holder)

    async def of_ticket(self, ticket: str) -> User:
        """Whose a ticket for a WebSocket is, which is spent with that. Raises Unauthenticated, Unavailable."""
        claims = await self._verified(ticket, "ticket")
        user = self._still(Holder(claims.user, claims.iat, claims.exp))
        await spend(self._log, "ticket", claims.jti)
        return user

    def _still(self, holder: Holder) -> User:
        """Raises Unauthenticated if it was revoked since it was issued."""
        user = holder.user
        if self._revoked:
            if ("session", str(user.session)) in self._revoked or ("key", str(user.key)) in self._revoked:
                raise Unauthenticated("This login or key was revoked; log in again.")
            if self._revoked.get(("user", user.id), 0) >= holder.issued:
                raise Unauthenticated("What you may do has changed since; refresh your login.")
        return user

    def _forget(self, before: float) -> None:
        """Of what was revoked longer ago, nothing lives any more that was issued before."""
        self._revoked = {what: at for what, at in self._revoked.items() if at > before}

    async def _verified(self, token: str, use: Use) -> Claims:
        """Raises Unauthenticated, Unavailable."""
        if asyncio.get_running_loop().time() > self._asked + KEYS_SECONDS:
            await self._ask_for_keys()
        try:
            return verified(token, self._keys, use, now())
        except Unauthenticated as error:
            if not isinstance(error.__cause__, InvalidKeyIdError):
                raise
        await self._ask_for_keys()  # it may be signed with a new one
        return verified(token, self._keys, use, now())

    async def _ask_for_keys(self) -> None:
        """Raises Unavailable while none are known."""
        asked = self._asked
        async with self._asking:
            at = asyncio.get_running_loop().time()
            if self._asked != asked or at < self._asked + ASK_AGAIN_SECONDS:
                return  # somebody else asked meanwhile, or has just done so
            try:
                found = await self._requests.ask(PUBLIC_KEYS, WantedKeys(), within=2)
            except Unavailable:
                if not self._keys.keys:
                    raise
                log.warning("keys_not_renewed")  # those that are known still hold
            else:
                self._keys = KeySet.import_key_set({"keys": found.keys}) if found.keys else KeySet([])
            self._asked = at


def parts_of(key: str) -> tuple[UUID, str]:
    """The id and the secret of an API key. Raises Unauthenticated."""
    key_id, _, secret = key.removeprefix(KEY_PREFIX).partition("_")
    try:
        return UUID(hex=key_id), secret
    except ValueError:
        raise Unauthenticated(f"The API key is not believed: it is none; they are {KEY_PREFIX}<id>_<secret>.") from None
