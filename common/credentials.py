"""What the identity service gave, verified where it is shown: access tokens, API keys and tickets for WebSockets."""

import asyncio
import re
import secrets
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable
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

TOKEN = re.compile(r"[A-Za-z0-9_-]{1,256}\.[A-Za-z0-9_-]{1,3000}\.[A-Za-z0-9_-]{86}")
"""What a token of ours looks like, which nothing else has to be looked into for. As other characters mean nothing in
base 64, there would be endlessly many ways, and long ones, to write the same token."""

KEY = re.compile(KEY_PREFIX + r"([0-9a-f]{32})_([A-Za-z0-9_-]{43})")
"""What an API key looks like: its id and its secret."""

HEADER = {"alg", "kid", "typ"}
"""What the header of a token of ours says: which key, never the key itself or where it is."""

Use = Literal["access", "refresh", "ticket"]
"""What a token is for: its audience. One for something else is not believed."""

KEPT = 20_000
"""Tokens and keys that were verified and are remembered, each; the least recently used are verified again."""

KEY_SECONDS = 60.0
"""For so long an API key is believed before identity is asked again. That it was revoked is heard at once."""

KEYS_SECONDS = 300.0
"""After so long the public keys are asked for again, and every token is verified with them again: one that was
withdrawn is believed so long at most, if identity answers."""

ASK_AGAIN_SECONDS = 5.0
"""Public keys are asked for so often at most: whoever makes up the names of keys costs nothing."""

ANSWER_SECONDS = 2.0
"""Whoever has to be asked about at identity waits so long at most, while it is away."""

NAMESPACE = UUID("3b1f1d0e-87b6-5a4e-9f0c-2f8e4b8d6a10")

V = TypeVar("V")

log = structlog.get_logger()


class Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a token of ours says (RFC 7519). `sid`: the session; `gen`: which refresh token of it this is.

    `ver`: the version of the user who had this role. `csrf`: SHA-256 of what a page sends beside the cookie in which
    this is. Times are seconds since 1970.
    """

    aud: Use
    exp: float
    iat: float
    jti: str
    sub: UserId
    iss: str = ""
    role: Role = "buyer"
    ver: int = 0
    sid: UUID | None = None
    kid: UUID | None = None
    gen: int = 0
    csrf: str = ""
    scopes: list[str] | None = None

    @property
    def user(self) -> User:
        """Whom it lets in."""
        scopes = None if self.scopes is None else frozenset(self.scopes)
        return User(self.sub, self.role, scopes, self.kid, self.sid, self.ver)


def csrf_digest(csrf: str) -> str:
    """What a token says of the secret that comes beside it."""
    return urlsafe_b64encode(sha256(csrf.encode()).digest()).rstrip(b"=").decode()


def verified(token: str, keys: KeySet, use: Use, at: datetime) -> Claims:
    """The claims of a token of ours. Raises Unauthenticated."""
    if not TOKEN.fullmatch(token):
        raise Unauthenticated(f"The {use} token is not believed: it is none of ours.")
    try:
        found = jwt.decode(token, keys, algorithms=ALGORITHMS)
        claims = msgspec.convert(found.claims, Claims)
    except (JoseError, ValueError, msgspec.ValidationError) as error:
        raise Unauthenticated(f"The {use} token is not believed: it is none of ours.") from error
    said = (found.header.get("typ"), claims.iss, claims.aud)
    if found.header.keys() != HEADER or said != (f"{use}+jwt", ISSUER, use):
        raise Unauthenticated(f"The {use} token is not believed: it is for something else.")
    if not claims.exp > at.timestamp():  # which NaN is not
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

    def drop(self, name: str) -> None:
        self._values.pop(name, None)

    def put(self, name: str, value: V) -> None:
        self._values[name] = value
        if len(self._values) > self._limit:
            self._values.popitem(last=False)


class Holder(msgspec.Struct, frozen=True):
    """Whom something lets in. `until`: seconds since 1970 after which it is looked at again."""

    user: User
    until: float
    csrf: str = ""


class Revocation(msgspec.Struct, frozen=True):
    """Until when it has to be remembered, in seconds since 1970; `since`: as in Revoked."""

    until: float
    since: int


class IssuedCredentials:
    """Verifies what the identity service issued, with its public keys; hears what was revoked. A worker.

    Tokens are verified here, without asking anybody; of API keys identity is asked once a minute. While the log cannot
    be reached, what was revoked meanwhile is believed for as long as it lives: minutes.
    """

    def __init__(self, event_log: EventLog, requests: Asks, clock: Callable[[], datetime] = now) -> None:
        self.name = "credentials"
        self.problem: str | None = "it is not known yet what was revoked"
        self._log = event_log
        self._requests = requests
        self._clock = clock
        self._keys = KeySet([])
        self._keys_until = float("-inf")
        self._asked = float("-inf")
        self._asking = asyncio.Lock()
        self._tokens: Recent[Holder] = Recent(KEPT)
        self._api_keys: Recent[Holder] = Recent(KEPT)
        self._heard = False
        self._revoked: dict[tuple[str, str], Revocation] = {}

    async def run(self) -> None:
        """Follow what is revoked until cancelled."""
        position = (await self._log.end("REVOKED")).sequence
        if not position or await self._log.event_id("REVOKED", position) is None:
            self._all_heard()  # there is none, or the last is so old that the stream dropped it
        async with aclosing(self._log.follow("REVOKED")) as batches:
            async for batch in batches:
                for recorded in batch:
                    assert isinstance(recorded.event, Revoked)
                    self._hear(recorded.event)
                if batch[-1].sequence >= position:
                    self._all_heard()

    def _all_heard(self) -> None:
        self._heard, self.problem = True, None

    def _hear(self, fact: Revoked) -> None:
        """Remember what was revoked, and forget that of which nothing lives any more that was issued before."""
        known = self._revoked.pop((fact.what, fact.whose), None)
        since = max(fact.since, known.since if known else 0)
        self._revoked[fact.what, fact.whose] = Revocation(fact.at.timestamp() + BELIEVED_SECONDS, since)
        at = self._clock().timestamp()
        while self._revoked and self._revoked[oldest := next(iter(self._revoked))].until < at:
            del self._revoked[oldest]

    async def of_access_token(self, token: str, csrf: str | None = None) -> User:
        """Whose an access token is. Raises Unauthenticated, Unavailable; Forbidden for a wrong `csrf`."""
        holder = self._tokens.get(token)
        if holder is None or self._clock().timestamp() >= holder.until:
            claims = await self._verified(token, "access")
            holder = Holder(claims.user, min(claims.exp, self._keys_until), claims.csrf)
            self._tokens.put(token, holder)
        if csrf is not None and not secrets.compare_digest(csrf_digest(csrf), holder.csrf):
            raise Forbidden("X-CSRF-Token: It does not belong to this login", field="X-CSRF-Token")
        return self.still(holder.user)

    async def of_key(self, key: str) -> User:
        """Whose an API key is. Raises Unauthenticated, Unavailable."""
        key_id, digest = parts_of(key)
        name, at = f"{key_id} {digest}", self._clock().timestamp()
        holder = self._api_keys.get(name)
        if holder is None or at >= holder.until or self._changed(holder.user):
            try:
                found = await self._requests.ask(CHECK_KEY, GivenKey(key_id, digest), within=ANSWER_SECONDS)
            except Unauthenticated:
                self._api_keys.drop(name)
                raise
            user = User(found.user_id, found.role, frozenset(found.scopes), key=key_id, version=found.version)
            until = at + KEY_SECONDS
            if found.expires_at:
                until = min(until, found.expires_at.timestamp())
            holder = Holder(user, until)
            self._api_keys.put(name, holder)
        return self.still(holder.user)

    async def of_ticket(self, ticket: str) -> User:
        """Whose a ticket for a WebSocket is, which is spent with that. Raises Unauthenticated, Unavailable."""
        claims = await self._verified(ticket, "ticket")
        user = self.still(claims.user)
        await spend(self._log, "ticket", claims.jti)
        return user

    def remembered(self, shown: str) -> bool:
        """Whether this access token or API key was believed here before, and not refused by identity since."""
        if KEY.fullmatch(shown):
            return self._api_keys.get("{} {}".format(*parts_of(shown))) is not None
        return self._tokens.get(shown) is not None

    def still(self, user: User) -> User:
        """A user who was let in and would be now. Raises Unauthenticated if it was revoked since; Unavailable."""
        if not self._heard:
            raise Unavailable("It is not known here yet which logins were revoked; try again.")
        if self._revoked:
            if ("session", str(user.session)) in self._revoked or ("key", str(user.key)) in self._revoked:
                raise Unauthenticated("This login or key was revoked; log in again.")
            if self._changed(user):
                raise Unauthenticated("What you may do has changed since; refresh your login.")
        return user

    def _changed(self, user: User) -> bool:
        """Whether somebody may do something else than when they were this user."""
        return (later := self._revoked.get(("user", user.id))) is not None and later.since > user.version

    async def _verified(self, token: str, use: Use) -> Claims:
        """Raises Unauthenticated, Unavailable."""
        if self._clock().timestamp() >= self._keys_until and not (self._keys.keys and self._asking.locked()):
            await self._ask_for_keys()
        try:
            return verified(token, self._keys, use, self._clock())
        except Unauthenticated as error:
            if not isinstance(error.__cause__, InvalidKeyIdError):
                raise
        await self._ask_for_keys()  # it may be signed with a new one
        return verified(token, self._keys, use, self._clock())

    async def _ask_for_keys(self) -> None:
        """Raises Unavailable while none are known."""
        asked = self._asked
        async with self._asking:
            at = self._clock().timestamp()
            pause = ASK_AGAIN_SECONDS if self._keys.keys else 0
            if self._asked == asked and at >= asked + pause:  # nobody else asked meanwhile, or has just done so
                try:
                    found = await self._requests.ask(PUBLIC_KEYS, WantedKeys(), within=ANSWER_SECONDS)
                    self._keys, self._keys_until = KeySet.import_key_set({"keys": found.keys}), at + KEYS_SECONDS
                except Unavailable:
                    log.warning("keys_not_renewed")  # those that are known still hold
                    self._keys_until = at + ASK_AGAIN_SECONDS
                self._asked = at
        if not self._keys.keys:
            raise Unavailable("Identity does not tell now with which keys it signs; try again.")


def parts_of(key: str) -> tuple[UUID, str]:
    """The id of an API key, and the digest of its secret. Raises Unauthenticated."""
    if not (parts := KEY.fullmatch(key)):
        raise Unauthenticated("The API key is not believed: it is none of ours.")
    return UUID(hex=parts[1]), digest_of(parts[2])
