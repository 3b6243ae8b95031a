"""What is believed of what somebody shows at a door, and above all what is not."""

import asyncio
import hmac
import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc import jwe
from joserfc.jwk import ECKey

from common.aggregate import Aggregate
from common.auth import KEY_PREFIX, Authenticator, User, cookie_name
from common.clock import new_id, now
from common.credentials import (
    ASK_AGAIN_SECONDS,
    KEY_SECONDS,
    KEYS_SECONDS,
    IssuedCredentials,
    Recent,
    csrf_digest,
    digest_of,
)
from common.errors import DomainError, Forbidden, Unauthenticated, Unavailable
from common.events import KeyRevoked, Revoked, Role, RoleChanged, SessionEnded
from common.memory_log import MemoryLog
from common.publisher import Publisher
from common.requests import A, Endpoint, Q
from common.runtime import running
from common.settings import BadSetting, Settings
from common.topology import BELIEVED_SECONDS
from services.identity.domain import DEV, KEYS, USERS, ChangeRole, CreateKey, LogIn, RevokeKey, place_id_of, user_id_of
from services.identity.listeners import RevokeWhatWasIssued
from services.identity.requests import answering
from services.identity.tokens import ACCESS, TICKET, Issuer, new_signing_key
from tests.harness import eventually

PEM, OTHER_PEM = new_signing_key(), new_signing_key()
OURS, OTHER = (serialization.load_pem_private_key(each.encode(), None) for each in (PEM, OTHER_PEM))
ISSUER = Issuer(PEM)
KID = ISSUER.public_keys[0]["kid"]
NOON = now()  # of the day of the test: identity looks at a clock of its own
ADA, SESSION, CSRF = user_id_of("https://accounts.google.com", "ada"), new_id(), "c" * 43
SETTINGS = Settings(auth="on", public_url="https://tickets.example.org")


# --- tokens by those who would like to be let in

Unsigned = Callable[[bytes], bytes]


def base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def es256(key: Any) -> Unsigned:
    def sign(text: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(text, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign


def hmac_with(key: bytes, algorithm: str) -> Unsigned:
    return lambda text: hmac.digest(key, text, algorithm)


def made(header: object, payload: object, sign: Unsigned) -> str:
    """A token of any header and payload: as JSON, or the bytes themselves."""
    parts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (header, payload)]
    text = ".".join(map(base64, parts))
    return f"{text}.{base64(sign(text.encode()))}"


GONE = object()
"""In place of a value: the member is left out."""


def header(**changes: object) -> dict[str, object]:
    return whole({"alg": "ES256", "kid": KID, "typ": "access+jwt"} | changes)


def claims(**changes: object) -> dict[str, object]:
    at = NOON.timestamp()
    named = {"iss": "boxoffice", "aud": "access", "sub": ADA, "role": "buyer", "sid": str(SESSION), "jti": "1"}
    return whole({**named, "iat": at, "exp": at + 300, **changes})


def whole(members: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in members.items() if value is not GONE}


def ours(**changes: object) -> str:
    """As if we had signed these claims."""
    return made(header(), claims(**changes), es256(OURS))


def headed(sign: Unsigned | None = None, **changes: object) -> str:
    """Right claims under another header."""
    return made(header(**changes), claims(), sign or es256(OURS))


GOOD = ours()
HEAD, BODY, SIGNATURE = GOOD.split(".")
PUBLIC_PEM = OURS.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
PUBLIC_JWK = json.dumps(ISSUER.public_keys[0]).encode()
THEIR_JWK = Issuer(OTHER_PEM).public_keys[0]
RSA = rsa.generate_private_key(65537, 2048)
P384, K1, EDWARDS = (
    ec.generate_private_key(ec.SECP384R1()),
    ec.generate_private_key(ec.SECP256K1()),
    ed25519.Ed25519PrivateKey.generate(),
)


def es384(text: bytes) -> bytes:
    r, s = decode_dss_signature(P384.sign(text, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def nothing(_: bytes) -> bytes:
    return b""


def zeros(_: bytes) -> bytes:
    return bytes(64)


NOT_BELIEVED: dict[str, str] = {
    # Not signed.
    **{f"alg {alg}, no signature": headed(nothing, alg=alg) for alg in ("none", "None", "NONE", "nOnE", "")},
    "alg none under a signature of ours": headed(alg="none"),
    "alg none under 64 bytes": headed(zeros, alg="none"),
    "a signature of zeros": headed(zeros),
    "no signature": f"{HEAD}.{BODY}.",
    "no signature and no dot": f"{HEAD}.{BODY}",
    "the signature of another token": f"{HEAD}.{BODY}.{ours(jti='2').split('.')[2]}",
    "the payload of another token": f"{HEAD}.{ours(role='operator').split('.')[1]}.{SIGNATURE}",
    "the header of another token": f"{headed(typ='JWT').split('.')[0]}.{BODY}.{SIGNATURE}",
    # Signed in another way.
    "HS256 with our public key": headed(hmac_with(PUBLIC_PEM, "sha256"), alg="HS256"),
    "HS512 with our public key": headed(hmac_with(PUBLIC_PEM, "sha512"), alg="HS512"),
    "HS512 with our public key as a JWK": headed(hmac_with(PUBLIC_JWK, "sha512"), alg="HS512"),
    "HS512 with nothing": headed(hmac_with(b"", "sha512"), alg="HS512"),
    "RS256": headed(lambda text: RSA.sign(text, padding.PKCS1v15(), hashes.SHA256()), alg="RS256"),
    "ES384": headed(es384, alg="ES384"),
    "ES256K": headed(es256(K1), alg="ES256K"),
    "EdDSA": headed(EDWARDS.sign, alg="EdDSA"),
    "ES256 that says that it is ES384": headed(alg="ES384"),
    "ES256 in small letters": headed(alg="es256"),
    "no alg": headed(alg=GONE),
    "alg null": headed(alg=None),
    "alg a list": headed(alg=["ES256"]),
    "alg a number": headed(alg=256),
    # Signed with another key.
    "another key under the id of ours": headed(es256(OTHER)),
    "another key under its own id": headed(es256(OTHER), kid=THEIR_JWK["kid"]),
    "another key without an id": headed(es256(OTHER), kid=GONE),
    "another key that comes along": headed(es256(OTHER), jwk=THEIR_JWK),
    "another key that comes along, without an id": headed(es256(OTHER), kid=GONE, jwk=THEIR_JWK),
    "another key at an address": headed(es256(OTHER), jku="https://evil.example/jwks.json"),
    "another key in a certificate at an address": headed(es256(OTHER), x5u="https://evil.example/x5"),
    "another key in a certificate": headed(es256(OTHER), x5c=["MIIB"]),
    # A key that is not named.
    "our key without an id": headed(kid=GONE),
    "our key under an unknown id": headed(kid="k"),
    "our key under an empty id": headed(kid=""),
    "our key under no id": headed(kid=None),
    "our key under a number": headed(kid=1),
    "our key under a list": headed(kid=[KID]),
    "our key under a path": headed(kid="../../../../dev/null"),
    # Extensions that nobody here understands.
    "crit of something unknown": headed(crit=["evil"], evil=1),
    "crit of what is not there": headed(crit=["exp"]),
    "crit of nothing": headed(crit=[]),
    "crit a text": headed(crit="exp"),
    "a payload that is not in base 64": headed(b64=False, crit=["b64"]),
    # For something else.
    "a refresh token": ISSUER.refresh(ADA, SESSION, 0, "", NOON, NOON + ACCESS),
    "a ticket": ISSUER.ticket(User(ADA, session=SESSION), NOON),
    "the header of a refresh token": headed(typ="refresh+jwt"),
    "the header of a ticket": headed(typ="ticket+jwt"),
    "the header of any token": headed(typ="JWT"),
    "the header of an access token of others": headed(typ="at+jwt"),
    "no typ": headed(typ=GONE),
    "typ null": headed(typ=None),
    "the audience of a refresh token": ours(aud="refresh"),
    "the audience of a ticket": ours(aud="ticket"),
    "another audience": ours(aud="shop"),
    "an empty audience": ours(aud=""),
    "no audience": ours(aud=GONE),
    "two audiences": ours(aud=["access", "refresh"]),
    "one audience in a list": ours(aud=["access"]),
    "another issuer": ours(iss="https://accounts.google.com"),
    "an issuer in capitals": ours(iss="Boxoffice"),
    "no issuer": ours(iss=GONE),
    # Over.
    "expired just now": ours(exp=NOON.timestamp()),
    "expired a second ago": ours(exp=NOON.timestamp() - 1),
    "expired before all time": ours(exp=-1),
    "expires never": ours(exp=GONE),
    "expires at null": ours(exp=None),
    "expires at a text": ours(exp="2099"),
    "expires at true": ours(exp=True),
    "expires at what is no number": ours(exp=float("nan")),
    # Claims that are missing, or of another type.
    "nobody says since when": ours(iat=GONE),
    "since a text": ours(iat="now"),
    "no id": ours(jti=GONE),
    "an id that is a number": ours(jti=1),
    "nobody's": ours(sub=GONE),
    "of an empty name": ours(sub=""),
    "of a name too long": ours(sub="a" * 256),
    "of a name with a space": ours(sub="a da"),
    "of a name with a line end": ours(sub="ada\n"),
    "of a name in other letters": ours(sub="ädä"),
    "of a number": ours(sub=1),
    "of a list": ours(sub=[ADA]),
    "an unknown role": ours(role="admin"),
    "a role in capitals": ours(role="Operator"),
    "roles": ours(role=["operator"]),
    "a role that is null": ours(role=None),
    "a session that is no id": ours(sid="1"),
    "a key that is no id": ours(kid="1"),
    "a version that is a text": ours(ver="1"),
    "scopes in a text": ours(scopes="orders:write"),
    "a payload that is a list": made(header(), [claims()], es256(OURS)),
    "a payload that is a text": made(header(), "ada", es256(OURS)),
    "a payload that is not JSON": made(header(), b"\x00\xff", es256(OURS)),
    "a payload that is deep": made(header(), b"[" * 1500, es256(OTHER)),
    # No token at all.
    "a header that is a list": made(["ES256"], claims(), es256(OURS)),
    "a header that is a text": made("ES256", claims(), es256(OURS)),
    "a header that is a number": made(1, claims(), es256(OURS)),
    "a header that is not JSON": made(b"\x00\xff", claims(), es256(OURS)),
    "a header that is deep": made(b"[" * 180, claims(), es256(OURS)),
    "a header that is deeper": made(b"[" * 50_000, claims(), es256(OURS)),
    "a header in half": f"{HEAD[:9]}.{BODY}.{SIGNATURE}",
    "a payload in half": f"{HEAD}.{BODY[:40]}.{SIGNATURE}",
    "a signature in half": f"{HEAD}.{BODY}.{SIGNATURE[:43]}",
    "a signature one letter short": GOOD[:-1],
    "a letter too many": GOOD + "A",
    "letters that mean nothing": f"{HEAD}.{BODY}.{SIGNATURE[:9]}!!{SIGNATURE[9:]}",
    "padding": GOOD + "==",
    "base 64 for other purposes": f"{HEAD}.{BODY}.{'+/' * 43}",
    "a dot behind it": GOOD + ".",
    "a dot before it": "ey." + GOOD,
    "two dots in the middle": f"{HEAD}..{BODY}.{SIGNATURE}",
    "four dots": f"{GOOD}.{BODY}.{SIGNATURE}",
    "only dots": "ey....",
    "one word": "ey",
    "encrypted for us": jwe.encrypt_compact(
        {"alg": "ECDH-ES", "enc": "A128GCM"}, json.dumps(claims()), ECKey.import_key(PUBLIC_PEM)
    ),
    "as an object of JSON": "ey"
    + json.dumps({"protected": HEAD, "payload": BODY, "signature": SIGNATURE}, indent=None).replace(" ", ""),
    "a huge payload": ours(more="a" * 60_000),
    "a huge signature": f"{HEAD}.{BODY}.{SIGNATURE * 700}",
    "in other letters": "ey" + "é" * 100,
    "an API key": f"{KEY_PREFIX}{'0' * 32}_{'a' * 43}",
    "nothing but the prefix of one": KEY_PREFIX,
    "a name for development": "dev:ada",
    "a name for development that is a role": "dev:ada:operator",
}


# --- the door, and identity behind it


class Clock:
    """The time at a door; it stands still until somebody lets it pass."""

    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> datetime:
        return self.at

    def passes(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


class Identity:
    """The identity service's own answers, without NATS; counts what it is asked."""

    def __init__(self, signing_key: str = PEM, *, dev: bool = False) -> None:
        self.log = MemoryLog()
        self.users, self.keys = Aggregate(USERS, self.log), Aggregate(KEYS, self.log)
        self.asked: list[str] = []
        self.away = False
        self._dev = dev
        self._revoke = RevokeWhatWasIssued(Publisher[Revoked]("revoked", self.log))
        self.signs_with(signing_key)

    def signs_with(self, signing_key: str) -> None:
        self.issuer = Issuer(signing_key)
        answers = answering(self.issuer, self.users, self.keys, dev=self._dev)
        self._answers = {each.endpoint.name: each.answer for each in answers}

    async def ask(self, endpoint: Endpoint[Q, A], question: Q, *, within: float = 10) -> A:  # noqa: ARG002
        self.asked.append(endpoint.name)
        await asyncio.sleep(0)  # others come meanwhile
        if self.away:
            raise Unavailable("Nobody answers for identity now; try again.")
        answer: A = await self._answers[endpoint.name](question)
        return answer

    async def register(self, role: Role = "buyer", issuer: str = "https://accounts.google.com") -> User:
        """Ada, who has just logged in."""
        user_id = user_id_of(issuer, "ada")
        found = await self.users.handle(place_id_of(user_id), LogIn(issuer, "ada", None, role, NOON))
        return User(user_id, found.state.role, session=SESSION, version=found.version)

    async def change_role(self, user_id: str, role: Role) -> None:
        handled = await self.users.handle(place_id_of(user_id), ChangeRole(user_id, role, "olga", NOON))
        for event in handled.events:
            assert isinstance(event, RoleChanged)
            await self._revoke.on(event)

    async def end_session(self) -> None:
        await self._revoke.on(SessionEnded(SESSION, ADA, "logout", NOON, version=2))

    async def make_key(self, user_id: str = ADA, expires_at: datetime | None = None) -> str:
        key_id, secret = new_id(), secrets.token_urlsafe(32)
        command = CreateKey(key_id, user_id, "import", ("orders:read",), digest_of(secret), NOON, expires_at)
        await self.keys.handle(key_id, command)
        return f"{KEY_PREFIX}{key_id.hex}_{secret}"

    async def revoke_key(self, key: str) -> None:
        for event in (await self.keys.handle(id_of(key), RevokeKey(ADA, NOON))).events:
            assert isinstance(event, KeyRevoked)
            await self._revoke.on(event)


def id_of(key: str) -> UUID:
    return UUID(hex=key.removeprefix(KEY_PREFIX)[:32])


class Door:
    """A process of any service: what it believes, and when."""

    def __init__(self, identity: Identity, settings: Settings = SETTINGS) -> None:
        self.clock = Clock()
        self.credentials = IssuedCredentials(identity.log, identity, self.clock)
        self._settings = settings
        self._authenticator = Authenticator(settings, self.credentials)

    async def bearer(self, token: str) -> User:
        return await self.asked("GET", authorization=f"Bearer {token}")

    async def socket(self, ticket: str) -> User:
        scope: Any = {"type": "websocket", "headers": [], "query_string": f"ticket={ticket}".encode()}
        return await self._authenticator.user(scope)

    async def cookie(self, token: str, method: str = "POST", **headers: str) -> User:
        return await self.asked(method, cookie=f"{cookie_name(self._settings, 'session')}={token}", **headers)

    async def asked(self, method: str, **headers: str) -> User:
        raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
        scope: Any = {"type": "http", "method": method, "headers": raw, "query_string": b"", "scheme": "http"}
        return await self._authenticator.user(scope)


@asynccontextmanager
async def opened(identity: Identity, settings: Settings = SETTINGS) -> AsyncIterator[Door]:
    door = Door(identity, settings)
    async with running([door.credentials]):
        yield door


@pytest.fixture
def identity() -> Identity:
    return Identity()


@pytest.fixture
async def door(identity: Identity) -> AsyncIterator[Door]:
    """A door that has heard what was revoked: nothing."""
    async with opened(identity) as door:
        await heard(door)
        yield door


async def heard(door: Door) -> None:
    async def look() -> str | None:
        return door.credentials.problem

    await eventually(look, None)


Deed = Callable[[], Any]


async def refused(kind: type[DomainError], deed: Any, *secret: str, says: str = "") -> None:
    """It is refused in this way, and no part of what was shown is told again."""
    with pytest.raises(kind, match=says or None) as refusal:
        await deed
    assert refusal.type is kind
    told = f"{refusal.value.detail} {refusal.value} {refusal.value.context}"
    for each in secret:
        pieces = {told[start : start + 10] for start in range(len(told) - 9)}
        assert not any(piece in each.replace(KEY_PREFIX, "") for piece in pieces), f"{told!r} tells a part of {each!r}"


async def outcome(deed: Any) -> str:
    """What came of it: whose it is, or how it was refused."""
    try:
        user: User = await deed
    except DomainError as error:
        return type(error).__name__
    return user.role


# --- tokens


async def test_what_we_signed_is_believed(door: Door) -> None:
    """If this were refused, all others would be refused for no good reason."""
    assert await door.bearer(GOOD) == User(ADA, "buyer", session=SESSION)
    assert await door.bearer(ours(exp=NOON.timestamp() + 0.001)) == User(ADA, "buyer", session=SESSION)
    assert await door.socket(ISSUER.ticket(User(ADA), NOON)) == User(ADA)


async def test_a_token_says_all_of_a_user(door: Door) -> None:
    person = User(ADA, "operator", session=SESSION, version=7)
    program = User(ADA, "seller", frozenset({"orders:read"}), key=new_id(), version=3)
    assert await door.bearer(ISSUER.access(person, "", NOON)) == person
    assert await door.socket(ISSUER.ticket(program, NOON)) == program


@pytest.mark.parametrize("case", NOT_BELIEVED)
async def test_what_we_did_not_give_is_not_believed(door: Door, case: str) -> None:
    await refused(Unauthenticated, door.bearer(NOT_BELIEVED[case]), NOT_BELIEVED[case])


@pytest.mark.parametrize("case", NOT_BELIEVED)
async def test_nor_is_it_in_a_cookie(door: Door, case: str) -> None:
    token = NOT_BELIEVED[case].replace("é", "e")
    await refused(Unauthenticated, door.cookie(token, "GET"), token)


TICKETS = {
    "an access token": GOOD,
    "a refresh token": ISSUER.refresh(ADA, SESSION, 0, "", NOON, NOON + ACCESS),
    "expired just now": ISSUER.ticket(User(ADA), NOON - TICKET),
    "with the header of an access token": made(header(), claims(aud="ticket"), es256(OURS)),
    "with the audience of an access token": made(header(typ="ticket+jwt"), claims(), es256(OURS)),
    "of another key": Issuer(OTHER_PEM).ticket(User(ADA), NOON),
    "not signed": made(header(typ="ticket+jwt", alg="none"), claims(aud="ticket"), nothing),
    "an API key": f"{KEY_PREFIX}{'0' * 32}_{'a' * 43}",
    "a name for development": "dev:ada",
    "garbage": "a.b.c",
    "nothing": "",
}


@pytest.mark.parametrize("case", TICKETS)
async def test_what_is_no_ticket_opens_no_socket(door: Door, case: str) -> None:
    await refused(Unauthenticated, door.socket(TICKETS[case]), TICKETS[case])


REFRESH_TOKENS = {
    "an access token": GOOD,
    "a ticket": ISSUER.ticket(User(ADA, session=SESSION), NOON),
    "expired just now": ISSUER.refresh(ADA, SESSION, 0, "", NOON - ACCESS, NOON),
    "of another key": Issuer(OTHER_PEM).refresh(ADA, SESSION, 0, "", NOON, NOON + ACCESS),
    "with the header of an access token": made(header(), claims(aud="refresh"), es256(OURS)),
    "garbage": "garbage" * 100,
    "nothing": "",
}


@pytest.mark.parametrize("case", REFRESH_TOKENS)
async def test_what_is_no_refresh_token_is_not_exchanged(case: str) -> None:
    async def read() -> None:
        ISSUER.read_refresh(REFRESH_TOKENS[case], NOON)

    await refused(Unauthenticated, read(), REFRESH_TOKENS[case])


async def test_a_token_is_believed_until_it_expires_however_often_it_was_seen(door: Door) -> None:
    token = ISSUER.access(User(ADA), "", NOON)
    assert await outcome(door.bearer(token)) == "seller"
    door.clock.passes(ACCESS.total_seconds() - 0.001)
    assert await outcome(door.bearer(token)) == "seller"
    door.clock.passes(0.001)
    await refused(Unauthenticated, door.bearer(token), token, says="expired")


async def test_where_no_names_are_believed_no_name_is(door: Door, identity: Identity) -> None:
    await refused(Unauthenticated, door.bearer("dev:ada"))
    async with opened(identity, Settings(auth="dev")) as developing:
        assert await developing.bearer("dev:ada:operator") == User("ada", "operator")


# --- the keys that tokens are signed with


async def test_while_identity_never_answered_nobody_can_tell(door: Door, identity: Identity) -> None:
    identity.away = True
    await refused(Unavailable, door.bearer(GOOD), GOOD)
    await refused(Unavailable, door.socket(ISSUER.ticket(User(ADA), NOON)))
    identity.away = False
    assert await outcome(door.bearer(GOOD)) == "buyer"


async def test_many_who_come_meanwhile_wait_for_one_question(door: Door, identity: Identity) -> None:
    identity.away = True
    outcomes = await asyncio.gather(*(outcome(door.bearer(ours(jti=str(number)))) for number in range(50)))
    assert outcomes == ["Unavailable"] * 50
    assert identity.asked == ["public_keys"]
    identity.away = False
    assert set(await asyncio.gather(*(outcome(door.bearer(GOOD)) for _ in range(50)))) == {"buyer"}
    assert identity.asked == ["public_keys"] * 2


async def test_what_is_no_token_is_refused_without_a_question(door: Door, identity: Identity) -> None:
    identity.away = True
    await refused(Unauthenticated, door.bearer(f"{KEY_PREFIX}0_a"))
    assert identity.asked == []


async def test_known_keys_hold_while_identity_is_away(door: Door, identity: Identity) -> None:
    assert await outcome(door.bearer(GOOD)) == "buyer"
    identity.away = True
    door.clock.passes(KEYS_SECONDS + 1)
    late = ours(exp=door.clock().timestamp() + 100)
    assert await outcome(door.bearer(late)) == "buyer"
    assert await outcome(door.bearer(late)) == "buyer"
    assert identity.asked == ["public_keys"] * 2


async def test_made_up_keys_cost_one_question_in_a_while(door: Door, identity: Identity) -> None:
    assert await outcome(door.bearer(GOOD)) == "buyer"
    made_up = [headed(es256(OTHER), kid=f"made up {number}") for number in range(20)]
    assert {await outcome(door.bearer(each)) for each in made_up} == {"Unauthenticated"}
    assert identity.asked == ["public_keys"]
    door.clock.passes(ASK_AGAIN_SECONDS)
    assert set(await asyncio.gather(*(outcome(door.bearer(each)) for each in made_up))) == {"Unauthenticated"}
    assert identity.asked == ["public_keys"] * 2
    assert await outcome(door.bearer(GOOD)) == "buyer"


async def test_made_up_keys_shut_nobody_out_while_identity_is_away(door: Door, identity: Identity) -> None:
    assert await outcome(door.bearer(GOOD)) == "buyer"
    identity.away = True
    door.clock.passes(ASK_AGAIN_SECONDS)
    await refused(Unauthenticated, door.bearer(headed(es256(OTHER), kid="made up")))
    assert await outcome(door.bearer(GOOD)) == "buyer"


async def test_a_new_key_is_believed_beside_the_old_one(door: Door, identity: Identity) -> None:
    assert await outcome(door.bearer(GOOD)) == "buyer"
    identity.signs_with(OTHER_PEM + PEM)
    door.clock.passes(ASK_AGAIN_SECONDS)
    assert await outcome(door.bearer(identity.issuer.access(User(ADA, "operator"), "", NOON))) == "operator"
    assert await outcome(door.bearer(ours(jti="2"))) == "buyer"
    assert identity.asked == ["public_keys"] * 2


async def test_a_withdrawn_key_is_not_believed_for_long_not_even_where_it_was_seen(
    door: Door, identity: Identity
) -> None:
    """Whoever stole it writes tokens that last."""
    stolen = ours(exp=NOON.timestamp() + 1e6)
    assert await outcome(door.bearer(stolen)) == "buyer"
    identity.signs_with(OTHER_PEM)
    door.clock.passes(KEYS_SECONDS)
    assert await outcome(door.bearer(stolen)) == "Unauthenticated"


async def test_a_key_withdrawn_while_identity_was_away_is_not_believed_soon_after(
    door: Door, identity: Identity
) -> None:
    stolen = ours(exp=NOON.timestamp() + 1e6)
    assert await outcome(door.bearer(stolen)) == "buyer"
    identity.away = True
    door.clock.passes(KEYS_SECONDS)
    assert await outcome(door.bearer(stolen)) == "buyer"
    identity.away = False
    identity.signs_with(OTHER_PEM)
    door.clock.passes(ASK_AGAIN_SECONDS)
    assert await outcome(door.bearer(stolen)) == "Unauthenticated"


async def test_what_is_published_is_public(identity: Identity) -> None:
    assert [sorted(key) for key in identity.issuer.public_keys] == [["alg", "crv", "kid", "kty", "use", "x", "y"]]


SIGNING_KEYS = {
    "none": "",
    "no key": "a-secret-of-mine",
    "half a key": PEM[:120] + "-----END PRIVATE KEY-----",
    "another curve": P384.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode(),
    "a key of another kind": RSA.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode(),
    "a public key": PUBLIC_PEM.decode(),
    "a key and a public key": PEM + PUBLIC_PEM.decode(),
    "a key behind a password": OURS.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"a-password"),
    ).decode(),
}


@pytest.mark.parametrize("case", SIGNING_KEYS)
def test_what_cannot_sign_is_refused_and_not_shown(case: str) -> None:
    with pytest.raises(BadSetting, match=r"^BOXOFFICE_SIGNING_KEY: Expected private keys") as refusal:
        Issuer(SIGNING_KEYS[case])
    lines = [line for line in SIGNING_KEYS[case].splitlines() if line and not line.startswith("-----")]
    assert not any(line in str(refusal.value) for line in lines)


# --- what was revoked


async def test_while_it_is_not_known_what_was_revoked_nobody_can_tell(identity: Identity) -> None:
    door = Door(identity)  # which hears nothing
    for deed in (door.bearer(GOOD), door.cookie(GOOD, "GET"), door.socket(ISSUER.ticket(User(ADA), NOON))):
        await refused(Unavailable, deed, GOOD)


async def test_a_process_that_starts_later_hears_what_was_revoked_before(identity: Identity) -> None:
    await identity.end_session()
    async with opened(identity) as door:
        await heard(door)
        await refused(Unauthenticated, door.bearer(GOOD), GOOD, says="revoked")


async def test_of_a_session_that_ended_nothing_is_believed(door: Door, identity: Identity) -> None:
    ticket = ISSUER.ticket(User(ADA, session=SESSION), NOON)
    assert await outcome(door.bearer(GOOD)) == "buyer"
    await identity.end_session()
    await eventually(lambda: outcome(door.bearer(GOOD)), "Unauthenticated")
    await refused(Unauthenticated, door.bearer(ours(jti="2")), says="revoked")
    await refused(Unauthenticated, door.cookie(GOOD, "GET"), says="revoked")
    await refused(Unauthenticated, door.socket(ticket), says="revoked")
    assert await outcome(door.bearer(ours(sid=str(new_id())))) == "buyer"


async def test_whoever_may_do_something_else_now_refreshes_their_login(door: Door, identity: Identity) -> None:
    """Whatever the clocks of the replicas say: the new token is the older one here."""
    before = await identity.register("operator")
    old = ISSUER.access(before, "", NOON)
    assert await outcome(door.bearer(old)) == "operator"
    await identity.change_role(ADA, "buyer")
    await eventually(lambda: outcome(door.bearer(old)), "Unauthenticated")
    await refused(Unauthenticated, door.socket(ISSUER.ticket(before, NOON)), says="changed")
    after = await identity.register()
    new = ISSUER.access(after, "", NOON - ACCESS / 2)
    assert await outcome(door.bearer(new)) == "buyer"
    assert await outcome(door.bearer(ISSUER.access(before, "", NOON + ACCESS / 2))) == "Unauthenticated"


async def test_what_is_heard_late_takes_nothing_back(door: Door, identity: Identity) -> None:
    """Two replicas of identity may tell it in the wrong order."""
    revoked = Publisher[Revoked]("revoked", identity.log)
    for since in (3, 2):
        await revoked.publish(new_id(), Revoked("user", ADA, NOON, since))
    await identity.end_session()
    await eventually(lambda: outcome(door.bearer(ours(sub="eve"))), "Unauthenticated")
    assert await outcome(door.bearer(ours(sid=str(new_id()), ver=2))) == "Unauthenticated"
    assert await outcome(door.bearer(ours(sid=str(new_id()), ver=3))) == "buyer"


async def test_what_was_revoked_is_remembered_as_long_as_anything_lives(door: Door, identity: Identity) -> None:
    await identity.end_session()
    await eventually(lambda: outcome(door.bearer(GOOD)), "Unauthenticated")
    door.clock.passes(BELIEVED_SECONDS)
    lasting = ours(exp=door.clock().timestamp() + 1)
    await identity.change_role((await identity.register()).id, "seller")
    await eventually(lambda: outcome(door.bearer(ours(sid=str(new_id()), exp=1e12))), "Unauthenticated")
    assert await outcome(door.bearer(lasting)) == "Unauthenticated"
    door.clock.passes(1)
    await identity.change_role(ADA, "operator")
    await eventually(lambda: outcome(door.bearer(ours(sub="eve", exp=1e12))), "buyer")


# --- API keys


async def test_a_key_is_good_for_its_scopes_and_the_role_of_its_owner(door: Door, identity: Identity) -> None:
    await identity.register("seller")
    key = await identity.make_key()
    assert await door.bearer(key) == User(ADA, "seller", frozenset({"orders:read"}), key=id_of(key), version=1)


async def test_identity_is_asked_of_a_key_once_in_a_while(door: Door, identity: Identity) -> None:
    await identity.register()
    key = await identity.make_key()
    for _ in range(3):
        assert await outcome(door.bearer(key)) == "buyer"
    door.clock.passes(KEY_SECONDS)
    assert await outcome(door.bearer(key)) == "buyer"
    assert identity.asked == ["check_key"] * 2


FORGED: dict[str, Callable[[str], str]] = {
    "another secret": lambda key: key[:-43] + "a" * 43,
    "another letter": lambda key: key[:-1] + ("b" if key[-1] == "a" else "a"),
    "another id": lambda key: KEY_PREFIX + new_id().hex + key[-44:],
    "no secret": lambda key: key[:-43],
    "no secret and no line": lambda key: key[:-44],
    "no id": lambda key: KEY_PREFIX + key[-44:],
    "half an id": lambda key: KEY_PREFIX + key[-60:],
    "an id in capitals": lambda key: KEY_PREFIX + id_of(key).hex.upper() + key[-44:],
    "an id with dashes": lambda key: f"{KEY_PREFIX}{id_of(key)}{key[-44:]}",
    "truncated": lambda key: key[:-1],
    "a letter too many": lambda key: key + "a",
    "the prefix twice": lambda key: KEY_PREFIX + key,
    "another prefix": lambda key: "boxoffice-" + key.removeprefix(KEY_PREFIX),
    "the prefix in capitals": lambda key: key.replace(KEY_PREFIX, KEY_PREFIX.upper()),
    "without the prefix": lambda key: key.removeprefix(KEY_PREFIX),
    "the digest in place of the secret": lambda key: key[:-43] + digest_of(key[-43:])[:43],
    "the whole digest": lambda key: key[:-43] + digest_of(key[-43:]),
    "huge": lambda key: key + "a" * 60_000,
}


@pytest.mark.parametrize("warm", [False, True], ids=["never seen", "in use"])
@pytest.mark.parametrize("case", FORGED)
async def test_what_is_no_key_is_not_believed(door: Door, identity: Identity, case: str, warm: bool) -> None:
    await identity.register()
    key = await identity.make_key()
    if warm:
        assert await outcome(door.bearer(key)) == "buyer"
    forged = FORGED[case](key)
    await refused(Unauthenticated, door.bearer(forged), forged)


async def test_a_key_is_no_cookie_and_no_ticket(door: Door, identity: Identity) -> None:
    await identity.register()
    key = await identity.make_key()
    await refused(Unauthenticated, door.cookie(key, "GET"), key)
    await refused(Unauthenticated, door.socket(key), key)


async def test_an_expired_key_is_not_believed(door: Door, identity: Identity) -> None:
    await identity.register()
    key = await identity.make_key(expires_at=NOON)
    await refused(Unauthenticated, door.bearer(key), key, says="expired")


async def test_a_key_is_asked_for_again_when_it_expires(door: Door, identity: Identity) -> None:
    await identity.register()
    door.clock.passes((now() - NOON).total_seconds())  # as late as it is for identity
    key = await identity.make_key(expires_at=now() + timedelta(seconds=KEY_SECONDS / 2))
    assert await outcome(door.bearer(key)) == "buyer"
    door.clock.passes(KEY_SECONDS / 2 + 1)
    await outcome(door.bearer(key))
    assert identity.asked == ["check_key"] * 2


async def test_what_was_believed_is_remembered_until_identity_says_no(door: Door, identity: Identity) -> None:
    """Nobody who was here before is taken for somebody who guesses."""
    await identity.register()
    key, wrong = await identity.make_key(), f"{KEY_PREFIX}{'0' * 32}_{'a' * 43}"
    assert not any(map(door.credentials.remembered, (key, wrong, GOOD, "garbage")))
    assert [await outcome(door.bearer(each)) for each in (key, GOOD)] == ["buyer", "buyer"]
    for shown in (wrong, "garbage"):
        await refused(Unauthenticated, door.bearer(shown))
    door.clock.passes(KEY_SECONDS * 60)  # both have run out
    assert [door.credentials.remembered(each) for each in (key, GOOD, wrong, "garbage")] == [True, True, False, False]
    await identity.revoke_key(key)
    await refused(Unauthenticated, door.bearer(key))
    assert not door.credentials.remembered(key)


async def test_a_revoked_key_is_not_believed(door: Door, identity: Identity) -> None:
    await identity.register()
    known, unknown, other = [await identity.make_key() for _ in range(3)]
    assert await outcome(door.bearer(known)) == "buyer"
    for key in (known, unknown):
        await identity.revoke_key(key)
        await eventually(lambda key=key: outcome(door.bearer(key)), "Unauthenticated")  # type: ignore[misc]  # a lambda
        await refused(Unauthenticated, door.bearer(key), key, says="revoked")
    assert await outcome(door.bearer(other)) == "buyer"


async def test_a_ticket_of_a_revoked_key_opens_no_socket(door: Door, identity: Identity) -> None:
    await identity.register()
    key = await identity.make_key()
    ticket = ISSUER.ticket(await door.bearer(key), NOON)
    await identity.revoke_key(key)
    await eventually(lambda: outcome(door.bearer(key)), "Unauthenticated")
    await refused(Unauthenticated, door.socket(ticket), says="revoked")


@pytest.mark.parametrize(("before", "after"), [("operator", "buyer"), ("buyer", "seller")])
async def test_a_key_may_what_its_owner_may_at_once(door: Door, identity: Identity, before: Role, after: Role) -> None:
    """Its program has no login to refresh: it goes on."""
    await identity.register(before)
    key = await identity.make_key()
    assert await outcome(door.bearer(key)) == before
    await identity.change_role(ADA, after)
    await eventually(lambda: outcome(door.bearer(key)), str(after))
    assert identity.asked == ["check_key"] * 2


async def test_while_identity_is_away_only_keys_just_seen_are_believed(door: Door, identity: Identity) -> None:
    await identity.register()
    known, unknown = await identity.make_key(), await identity.make_key()
    assert await outcome(door.bearer(known)) == "buyer"
    identity.away = True
    assert await outcome(door.bearer(known)) == "buyer"
    await refused(Unavailable, door.bearer(unknown), unknown)
    door.clock.passes(KEY_SECONDS)
    await refused(Unavailable, door.bearer(known), known)


@pytest.mark.parametrize("dev", [True, False], ids=["in development", "afterwards"])
async def test_a_key_from_development_is_good_in_development(dev: bool) -> None:
    identity = Identity(dev=dev)
    user = await identity.register("operator", DEV)
    key = await identity.make_key(user.id)
    async with opened(identity) as door:
        await heard(door)
        assert await outcome(door.bearer(key)) == ("operator" if dev else "Unauthenticated")


# --- tickets for WebSockets


async def test_a_ticket_opens_one_socket(door: Door) -> None:
    ticket = ISSUER.ticket(User(ADA), NOON)
    assert await outcome(door.socket(ticket)) == "seller"
    await refused(Unauthenticated, door.socket(ticket), ticket, says="used before")


async def test_of_many_who_come_with_one_ticket_to_several_doors_one_gets_in(identity: Identity) -> None:
    ticket = ISSUER.ticket(User(ADA), NOON)
    async with opened(identity) as here, opened(identity) as there:
        await heard(here)
        await heard(there)
        outcomes = await asyncio.gather(*(outcome(each.socket(ticket)) for each in [here, there] * 5))
    assert sorted(outcomes) == ["Unauthenticated"] * 9 + ["seller"]


async def test_a_refused_ticket_is_not_spent(door: Door, identity: Identity) -> None:
    ticket = ISSUER.ticket(User(ADA), NOON)
    identity.away = True
    await refused(Unavailable, door.socket(ticket))
    identity.away = False
    assert await outcome(door.socket(ticket)) == "seller"


# --- a page's cookie, and what comes beside it

PAGE = {"origin": "https://tickets.example.org"}
PAGES = ISSUER.access(User(ADA, "buyer", session=SESSION), csrf_digest(CSRF), NOON)
PROGRAMS = ISSUER.access(User(ADA, "buyer", session=SESSION), "", NOON)


async def test_a_page_is_let_in_with_its_cookie_and_what_comes_beside_it(door: Door) -> None:
    assert await outcome(door.cookie(PAGES, **PAGE, x_csrf_token=CSRF)) == "buyer"
    assert await outcome(door.cookie(PAGES, x_csrf_token=CSRF)) == "buyer"
    assert await outcome(door.cookie(PAGES, "GET")) == "buyer"


BESIDE: dict[str, tuple[str, dict[str, str]]] = {
    "nothing": (PAGES, {}),
    "nothing, on a page of ours": (PAGES, PAGE),
    "an empty text": (PAGES, {"x_csrf_token": ""}),
    "that of another login": (PAGES, {"x_csrf_token": "d" * 43}),
    "a part of it": (PAGES, {"x_csrf_token": CSRF[:-1]}),
    "its digest": (PAGES, {"x_csrf_token": csrf_digest(CSRF)}),
    "letters that no text has": (PAGES, {"x_csrf_token": "\xff" * 43}),
    "something, to the token of a program": (PROGRAMS, {"x_csrf_token": CSRF}),
    "an empty text, to the token of a program": (PROGRAMS, {"x_csrf_token": ""}),
    "it, on a page of others": (PAGES, {"x_csrf_token": CSRF, "origin": "https://evil.example"}),
    "it, on a page without TLS": (PAGES, {"x_csrf_token": CSRF, "origin": "http://tickets.example.org"}),
    "it, on a page of another port": (PAGES, {"x_csrf_token": CSRF, "origin": "https://tickets.example.org:444"}),
    "it, on a page of a host below ours": (PAGES, {"x_csrf_token": CSRF, "origin": "https://a.tickets.example.org"}),
    "it, on a page of a longer name": (PAGES, {"x_csrf_token": CSRF, "origin": "https://tickets.example.org.evil"}),
    "it, on a page of nobody": (PAGES, {"x_csrf_token": CSRF, "origin": "null"}),
    "it, on a page of no address": (PAGES, {"x_csrf_token": CSRF, "origin": ""}),
}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("case", BESIDE)
async def test_a_cookie_changes_nothing_without_what_only_our_page_knows(door: Door, case: str, method: str) -> None:
    token, beside = BESIDE[case]
    await refused(Forbidden, door.cookie(token, method, **beside), token, CSRF, beside.get("x_csrf_token", ""))


async def test_what_was_believed_once_is_not_believed_without_it(door: Door) -> None:
    assert await outcome(door.cookie(PAGES, x_csrf_token=CSRF)) == "buyer"
    await refused(Forbidden, door.cookie(PAGES, x_csrf_token="d" * 43), CSRF)


COOKIES = {
    "no cookie of ours": "session=abc",
    "an empty one": "__Host-boxoffice-session=",
    "one that any host could have set": f"boxoffice-session={GOOD}",
    "one under another name": f"__Host-boxoffice-refresh={GOOD}",
    "one in other letters": f"__host-boxoffice-session={GOOD}",
    "what is no cookie": ";;;===,,,\x00\xff",
}


@pytest.mark.parametrize("case", COOKIES)
async def test_what_is_no_cookie_of_ours_is_not_believed(door: Door, case: str) -> None:
    await refused(Unauthenticated, door.asked("GET", cookie=COOKIES[case]), GOOD)


# --- how much is remembered


def test_only_what_was_used_recently_is_remembered() -> None:
    recent: Recent[int] = Recent(3)
    for number, name in enumerate("abc"):
        recent.put(name, number)
    assert recent.get("a") == 0
    recent.put("d", 3)
    assert [recent.get(name) for name in "abcd"] == [0, None, 2, 3]
