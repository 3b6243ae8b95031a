"""What a provider, or somebody who plays one, may try: all of it refused, and no secret told."""

import asyncio
import base64
import gzip
import hashlib
import logging
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from authlib.oidc.core.util import create_half_hash  # type: ignore[import-untyped]  # authlib has no types
from structlog.testing import capture_logs

from common.errors import DomainError, Invalid, Unauthenticated, Unavailable
from common.settings import BadSetting
from services.identity.oauth import Callback, Identity, LoggedIn, LoginOptions
from services.identity.oidc import ANSWER_BYTES, OidcProvider, ProviderSettings, for_refresh_token
from tests.forger import (
    ACCESS_TOKEN,
    CLIENT_ID,
    CLIENT_SECRET,
    NOW,
    REFRESH_TOKEN,
    SILENCE,
    Answer,
    Forger,
    base64url,
    forger,
    jwk,
    pem,
    private_key,
)

HERE = "https://shop.example/api/auth/callback"
CODE = "the-code-of-a-test"
OPTIONS = LoginOptions(HERE, "the-state-of-a-test", "the-nonce-of-a-test", "the-verifier-of-a-test" * 2)
CALLBACK = Callback(state=OPTIONS.state, code=CODE)
NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Made once: httpx would read every certificate of the world for each test."""

LEAK = "a-secret-in-a-description"
SECRETS = [CLIENT_SECRET, CODE, OPTIONS.state, OPTIONS.nonce, OPTIONS.code_verifier, ACCESS_TOKEN, REFRESH_TOKEN, LEAK]
BASIC = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()

Tamper = Callable[[Forger], object]
Case = tuple[Tamper, type[DomainError], str]
"""What is tampered with, the kind of error, and what is said of it."""


@pytest.fixture(scope="module")
async def forger_there() -> AsyncIterator[Forger]:
    async with forger() as there:
        yield there


@pytest.fixture
def liar(forger_there: Forger) -> Forger:
    """One that answers the login of these tests."""
    forger_there.reset()
    forger_there.claims["nonce"] = OPTIONS.nonce
    return forger_there


def provider_of(liar: Forger, seconds: float = 10.0) -> OidcProvider:
    settings = ProviderSettings(name="Forger", issuer=liar.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    return OidcProvider(settings, seconds=seconds, trust=NOBODY, now=lambda: NOW)


async def log_in(liar: Forger, callback: Callback = CALLBACK, seconds: float = 10.0) -> LoggedIn:
    async with provider_of(liar, seconds) as provider:
        return await provider.exchange_code(callback, OPTIONS)


async def refused(
    attempt: Awaitable[object], kind: type[DomainError], says: str, log: pytest.LogCaptureFixture
) -> None:
    """Refused with that kind of error; and nothing that is secret is in it, in its traceback or in what is logged."""
    log.set_level(logging.DEBUG)
    with capture_logs() as entries, pytest.raises(DomainError, match=says) as refusal:
        await attempt
    assert type(refusal.value) is kind
    told = "\n".join([*traceback.format_exception(refusal.value), repr(refusal.value.context), log.text, repr(entries)])
    assert not [each for each in [*SECRETS, BASIC, "eyJ"] if each in told], "eyJ begins every token"


def claim(**claims: Any) -> Tamper:
    return lambda liar: liar.claims.update(claims)


def without(*names: str) -> Tamper:
    return lambda liar: [liar.claims.pop(each) for each in names]


def head(**header: Any) -> Tamper:
    return lambda liar: liar.header.update(header)


def garbled(garble: Callable[[str], str]) -> Tamper:
    return lambda liar: setattr(liar, "garble", garble)


def part(at: int, text: str) -> Tamper:
    """A token with one of its three parts replaced."""
    return garbled(lambda token: ".".join(text if each == at else was for each, was in enumerate(token.split("."))))


def signed(algorithm: str, key: Callable[[Forger], Any], **header: Any) -> Tamper:
    def tamper(liar: Forger) -> None:
        liar.sign_as(algorithm, key(liar))
        liar.header.update(header)

    return tamper


def publishing(key: str, algorithm: str, **members: Any) -> Tamper:
    """Honest but for the key: it is published as `members` say."""

    def tamper(liar: Forger) -> None:
        liar.sign_as(algorithm, private_key(key))
        liar.keys = [jwk(private_key(key), **{"kid": "one", **members})]

    return tamper


def both(*tampers: Tamper) -> Tamper:
    return lambda liar: [each(liar) for each in tampers]


def discovery(**members: Any) -> Tamper:
    return lambda liar: liar.discovery.update(members)


def at(token_endpoint: str) -> Tamper:
    return discovery(token_endpoint=token_endpoint)


def answer(path: str, body: Any, status: int = 200, **headers: str) -> Tamper:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda liar: liar.answers.update({path: Answer(body, status, named)})


def silent(path: str) -> Tamper:
    return lambda liar: liar.answers.update({path: SILENCE})


def error(code: str, status: int = 400) -> Tamper:
    return answer("token", {"error": code, "error_description": LEAK, "error_uri": f"https://x/{LEAK}"}, status)


def rsa(_: Forger) -> Any:
    return private_key("RSA")


def foreign(_: Forger) -> Any:
    return private_key("RSA", 1)


FOREIGN = "http://169.254.169.254/keys"
DEEP = b'{"deep":' + b"[" * 100_000
WELL_KNOWN = ".well-known/openid-configuration"

SIGNED, PUBLISHED = "not signed by the provider", "does not publish"
ALGORITHM, NO_TOKEN, SAYS_NOT = "has to be signed by one of", "not a signed token", "does not say what an ID token has"

SIGNATURES: dict[str, Case] = {
    "alg none": (both(head(alg="none"), part(2, "")), Unauthenticated, ALGORITHM),
    "alg none with a signature": (head(alg="none"), Unauthenticated, ALGORITHM),
    "alg nOnE": (both(head(alg="nOnE"), part(2, "")), Unauthenticated, ALGORITHM),
    "alg empty": (head(alg=""), Unauthenticated, ALGORITHM),
    "alg missing": (part(0, base64url(b'{"kid":"one"}')), Unauthenticated, NO_TOKEN),
    "alg null": (part(0, base64url(b'{"alg":null}')), Unauthenticated, NO_TOKEN),
    "alg a list": (part(0, base64url(b'{"alg":["RS256"]}')), Unauthenticated, NO_TOKEN),
    "alg twice, the second none": (part(0, base64url(b'{"alg":"RS256","alg":"none"}')), Unauthenticated, ALGORITHM),
    "HS256 by the public key": (signed("HS256", lambda _: pem(private_key("RSA"))), Unauthenticated, ALGORITHM),
    "HS256 by the client secret": (signed("HS256", lambda _: CLIENT_SECRET.encode()), Unauthenticated, ALGORITHM),
    "HS256 by a secret that is published": (
        both(
            signed("HS256", lambda _: b"k" * 32),
            lambda liar: liar.keys.append({"kty": "oct", "k": base64url(b"k" * 32), "kid": "one"}),
        ),
        *(Unauthenticated, ALGORITHM),
    ),
    "RS512": (head(alg="RS512"), Unauthenticated, ALGORITHM),
    "ES384": (signed("ES384", lambda _: private_key("P-384")), Unauthenticated, ALGORITHM),
    "ES256 on another curve": (publishing("P-384", "ES256"), Unauthenticated, PUBLISHED),
    "RS256 said to be PS256": (both(head(alg="PS256"), lambda liar: liar.keys[0].pop("alg")), Unauthenticated, SIGNED),
    "by a key of another kind": (signed("ES256", lambda _: private_key("EC")), Unauthenticated, PUBLISHED),
    "by a foreign key": (signed("RS256", foreign), Unauthenticated, SIGNED),
    "by a foreign key with its id": (signed("RS256", foreign, kid="two"), Unauthenticated, PUBLISHED),
    "an id that is a path": (head(kid="../../etc/passwd"), Unauthenticated, PUBLISHED),
    "an id that is a number": (head(kid=1), Unauthenticated, NO_TOKEN),
    "no id and two keys": (
        both(
            lambda liar: liar.header.pop("kid"),
            lambda liar: liar.keys.append(jwk(private_key("RSA", 1), kid="two")),
        ),
        *(Unauthenticated, PUBLISHED),
    ),
    "a key for encryption": (publishing("RSA", "RS256", use="enc"), Unauthenticated, PUBLISHED),
    "a key for another algorithm": (publishing("RSA", "RS256", alg="PS256"), Unauthenticated, PUBLISHED),
    "a key that may not verify": (publishing("RSA", "RS256", key_ops=["sign"]), Unauthenticated, SIGNED),
    "a key that can be broken": (publishing("small", "RS256"), Unauthenticated, PUBLISHED),
    "a key that is none": (publishing("RSA", "RS256", n="AQAB"), Unauthenticated, PUBLISHED),
    "a modulus that is a number": (publishing("RSA", "RS256", n=5), Unauthenticated, PUBLISHED),
    "no key": (lambda liar: liar.keys.clear(), Unauthenticated, PUBLISHED),
    "its own key in the header (jwk)": (
        signed("RS256", foreign, jwk=jwk(private_key("RSA", 1), kid="one")),
        *(Unauthenticated, SIGNED),
    ),
    "its own keys' address (jku)": (signed("RS256", foreign, jku="https://evil.example/"), Unauthenticated, SIGNED),
    "its own certificate's address (x5u)": (
        signed("RS256", foreign, x5u="https://e.example/"),
        Unauthenticated,
        SIGNED,
    ),
    "its own certificate (x5c)": (signed("RS256", foreign, x5c=["MIIB"]), Unauthenticated, SIGNED),
    "an extension that is critical": (head(crit=["exp"], exp=1), Unauthenticated, "extension"),
    "a critical extension that joserfc knows": (head(crit=["b64"], b64=True), Unauthenticated, "extension"),
    "a payload that is not encoded": (head(b64=False), Unauthenticated, "extension"),
    "nothing critical": (head(crit=[]), Unauthenticated, "extension"),
    "encrypted": (
        garbled(lambda _: base64url(b'{"alg":"RSA-OAEP","enc":"A256GCM"}') + ".a.b.c.d"),
        *(Unauthenticated, ALGORITHM),
    ),
    "empty": (garbled(lambda _: ""), Unauthenticated, NO_TOKEN),
    "no token": (garbled(lambda _: "not a token"), Unauthenticated, NO_TOKEN),
    "letters that no token has": (garbled(lambda _: "é.é.é"), Unauthenticated, NO_TOKEN),
    "half a letter": (lambda liar: answer("token", b'{"id_token":"\\ud800"}')(liar), Unavailable, "holds no tokens"),
    "two parts": (garbled(lambda token: token.rpartition(".")[0]), Unauthenticated, SIGNED),
    "four parts": (garbled(lambda token: f"{token}.AAAA"), Unauthenticated, SIGNED),
    "no signature": (part(2, ""), Unauthenticated, SIGNED),
    "a cut signature": (garbled(lambda token: token[:-20]), Unauthenticated, SIGNED),
    "a signature of nothing": (part(2, base64url(bytes(256))), Unauthenticated, SIGNED),
    "a longer signature": (part(2, base64url(bytes(4096))), Unauthenticated, SIGNED),
    "other claims under the signature": (part(1, base64url(b'{"sub":"operator"}')), Unauthenticated, SIGNED),
    "a header that is a list": (part(0, base64url(b'["alg","RS256"]')), Unauthenticated, NO_TOKEN),
    "a header that is a text": (part(0, base64url(b'"alg"')), Unauthenticated, NO_TOKEN),
    "a header that is deep": (part(0, base64url(DEEP)), Unauthenticated, NO_TOKEN),
    "a header that is long": (head(kid="one", more="m" * 1000), Unauthenticated, SIGNED),
}

CLAIMS: dict[str, Case] = {
    **{f"no {each}": (without(each), Unauthenticated, SAYS_NOT) for each in ("iss", "sub", "aud", "exp", "iat")},
    "another issuer": (claim(iss="https://accounts.google.com"), Unauthenticated, "another issuer"),
    "almost the issuer": (lambda liar: liar.claims.update(iss=f"{liar.issuer}/"), Unauthenticated, "another issuer"),
    "an issuer that is a list": (lambda liar: liar.claims.update(iss=[liar.issuer]), Unauthenticated, SAYS_NOT),
    "another audience": (claim(aud="somebody-else"), Unauthenticated, "another client"),
    "audiences without us": (claim(aud=["a", "b"]), Unauthenticated, "another client"),
    "no audience at all": (claim(aud=[]), Unauthenticated, "another client"),
    "an audience that begins as we do": (claim(aud=f"{CLIENT_ID}2"), Unauthenticated, "another client"),
    "an audience that is an object": (claim(aud={CLIENT_ID: True}), Unauthenticated, SAYS_NOT),
    "several audiences and no azp": (claim(aud=[CLIENT_ID, "b"]), Unauthenticated, "azp"),
    "several audiences and a foreign azp": (claim(aud=[CLIENT_ID, "b"], azp="b"), Unauthenticated, "azp"),
    "a foreign azp": (claim(azp="b"), Unauthenticated, "azp"),
    "expired": (claim(exp=NOW - 60), Unauthenticated, "has expired"),
    "expired, and for ever": (claim(exp=-1), Unauthenticated, "has expired"),
    "an expiry that is a text": (claim(exp="2999-01-01"), Unauthenticated, SAYS_NOT),
    "an expiry that is true": (claim(exp=True), Unauthenticated, SAYS_NOT),
    "issued in a while": (claim(iat=NOW + 61), Unauthenticated, "from the future"),
    "valid in a while": (claim(nbf=NOW + 61), Unauthenticated, "from the future"),
    "no nonce": (without("nonce"), Unauthenticated, "nonce"),
    "the nonce of another login": (claim(nonce="another"), Unauthenticated, "nonce"),
    "an empty nonce": (claim(nonce=""), Unauthenticated, "nonce"),
    "a nonce that is null": (claim(nonce=None), Unauthenticated, "nonce"),
    "a nonce among others": (claim(nonce=["another", OPTIONS.nonce]), Unauthenticated, SAYS_NOT),
    "an empty subject": (claim(sub=""), Unauthenticated, SAYS_NOT),
    "a subject of 256 characters": (claim(sub="s" * 256), Unauthenticated, SAYS_NOT),
    "a subject that is not ASCII": (claim(sub="adä"), Unauthenticated, SAYS_NOT),
    "a subject of two lines": (claim(sub="ada\n"), Unauthenticated, SAYS_NOT),
    "a subject with a zero byte": (claim(sub="ada\0"), Unauthenticated, SAYS_NOT),
    "a subject that is a number": (claim(sub=1), Unauthenticated, SAYS_NOT),
    "the hash of another access token": (claim(at_hash=base64url(bytes(16))), Unauthenticated, "at_hash"),
    "a hash of an access token that is not there": (
        both(claim(at_hash=base64url(bytes(16))), lambda liar: liar.tokens.pop("access_token")),
        *(Unauthenticated, "at_hash"),
    ),
    "claims that are a list": (lambda liar: setattr(liar, "claims", [liar.claims]), Unauthenticated, SAYS_NOT),
    "claims larger than any": (claim(more="m" * 150_000), Unauthenticated, SIGNED),
}

ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri", "revocation_endpoint", "userinfo_endpoint")
CONFIGURED, CANNOT = "Whoever runs this has to compare", "cannot be asked who you are now"

PROVIDERS: dict[str, Case] = {
    "a document of another issuer": (discovery(issuer="https://accounts.google.com"), Unavailable, "another issuer"),
    "a document of almost the issuer": (
        lambda liar: liar.discovery.update(issuer=f"{liar.issuer}/"),
        *(Unavailable, "another issuer"),
    ),
    **{f"{each} in the clear": (discovery(**{each: FOREIGN}), Unavailable, "not safe") for each in ENDPOINTS},
    "an endpoint that is a script": (discovery(authorization_endpoint="javascript:alert(1)"), Unavailable, "not safe"),
    "an endpoint that is a file": (discovery(jwks_uri="file:///etc/passwd"), Unavailable, "not safe"),
    "an endpoint with a password": (at("https://a:b@idp.example/"), Unavailable, "not safe"),
    "an endpoint that is nowhere": (at("https:///token"), Unavailable, "not safe"),
    "an endpoint of no port": (at("https://idp.example:x/"), Unavailable, "not safe"),
    "a loopback that is none": (at("http://127.0.0.1.evil.example/"), Unavailable, "not safe"),
    "an endpoint that is missing": (lambda liar: liar.discovery.pop("jwks_uri"), Unavailable, "document is none"),
    "PKCE in the clear only": (discovery(code_challenge_methods_supported=["plain"]), Unavailable, "PKCE with S256"),
    "a document that is HTML": (answer(WELL_KNOWN, b"<html>"), Unavailable, "document is none"),
    "a document that is a list": (answer(WELL_KNOWN, []), Unavailable, "document is none"),
    "a document that is deep": (answer(WELL_KNOWN, DEEP), Unavailable, "document is none"),
    "a document that is large": (answer(WELL_KNOWN, b" " * (ANSWER_BYTES + 1)), Unavailable, "is larger than"),
    "a document that is elsewhere": (answer(WELL_KNOWN, b"", 302, location=FOREIGN), Unavailable, "answered 302"),
    "a document that is not there": (answer(WELL_KNOWN, b"", 404), Unavailable, "answered 404"),
    "a document that fails": (answer(WELL_KNOWN, b"", 500), Unavailable, "answered 500"),
    "keys that are HTML": (answer("keys", b"<html>"), Unavailable, "keys cannot be read"),
    "keys that are a list": (answer("keys", []), Unavailable, "keys cannot be read"),
    "keys that are numbers": (answer("keys", {"keys": [1]}), Unavailable, "keys cannot be read"),
    "keys that are deep": (answer("keys", DEEP), Unavailable, "keys cannot be read"),
    "keys that are large": (answer("keys", b" " * (ANSWER_BYTES + 1)), Unavailable, "is larger than"),
    "keys that are elsewhere": (answer("keys", b"", 307, location=FOREIGN), Unavailable, "answered 307"),
    "keys that fail": (answer("keys", b"", 503), Unavailable, "answered 503"),
    "tokens that are HTML": (answer("token", b"<html>"), Unavailable, "holds no tokens"),
    "tokens that are a list": (answer("token", []), Unavailable, "holds no tokens"),
    "tokens that are deep": (answer("token", DEEP), Unavailable, "holds no tokens"),
    "tokens that are large": (answer("token", b" " * (ANSWER_BYTES + 1)), Unavailable, "is larger than"),
    "tokens that are compressed": (
        answer("token", gzip.compress(b" " * 10_000_000), content_encoding="gzip"),
        *(Unavailable, "compressed"),
    ),
    "tokens that are elsewhere": (answer("token", b"", 307, location=FOREIGN), Unavailable, "answered 307"),
    "tokens that fail": (answer("token", LEAK.encode(), 500), Unavailable, "answered 500"),
    "tokens that fail with an error": (error("invalid_grant", 500), Unavailable, "answered 500"),
    "too many logins": (answer("token", {"retry": LEAK}, 429), Unavailable, "answered 429"),
    "an error that is HTML": (answer("token", LEAK.encode(), 400), Unavailable, "answered 400"),
    "an error that is a number": (answer("token", {"error": 1}, 400), Unavailable, "answered 400"),
    "a refresh token without end": (
        lambda liar: liar.tokens.update(refresh_token="r" * 10_000),
        *(Unavailable, "holds no tokens"),
    ),
    "no ID token": (answer("token", {"access_token": ACCESS_TOKEN}), Unauthenticated, "ID token is missing"),
    "an ID token that is null": (answer("token", {"id_token": None}), Unauthenticated, "ID token is missing"),
    "an ID token that is an object": (answer("token", {"id_token": {"sub": "ada"}}), Unavailable, "holds no tokens"),
    "a code that is used or old": (error("invalid_grant"), Unauthenticated, "does not confirm this login"),
    "a request that is not liked": (error("invalid_request"), Unauthenticated, "does not confirm this login"),
    "an error with a secret for a name": (error(LEAK), Unauthenticated, "does not confirm this login"),
    "a client that is not known": (error("invalid_client", 401), Unavailable, CONFIGURED),
    "a client that may not": (error("unauthorized_client"), Unavailable, CONFIGURED),
    "a redirect that is not registered": (error("redirect_uri_mismatch"), Unavailable, CONFIGURED),
    "a provider that is busy": (error("temporarily_unavailable"), Unavailable, CANNOT),
}

thin = without("email", "name")
PEOPLE: dict[str, Case] = {
    "somebody else": (both(thin, answer("userinfo", {"sub": "bob"})), Unauthenticated, "tells of somebody else"),
    "nobody": (both(thin, answer("userinfo", {"email": "ada@example.org"})), Unavailable, "cannot be read"),
    "HTML about somebody": (both(thin, answer("userinfo", b"<html>")), Unavailable, "cannot be read"),
    "somebody who is deep": (both(thin, answer("userinfo", DEEP)), Unavailable, "cannot be read"),
    "somebody elsewhere": (both(thin, answer("userinfo", b"", 302, location=FOREIGN)), Unavailable, "answered 302"),
    "nothing about somebody": (both(thin, answer("userinfo", LEAK.encode(), 401)), Unavailable, "answered 401"),
    "an access token of two lines": (
        both(thin, lambda liar: liar.tokens.update(access_token=f"{ACCESS_TOKEN}\r\nX: y")),
        *(Unavailable, "access token cannot be used"),
    ),
    "an access token that is not ASCII": (
        both(thin, lambda liar: liar.tokens.update(access_token=f"{ACCESS_TOKEN}é")),
        *(Unavailable, "access token cannot be used"),
    ),
}

LOGINS = SIGNATURES | CLAIMS | PROVIDERS | PEOPLE


@pytest.mark.parametrize("case", LOGINS.values(), ids=LOGINS.keys())
async def test_a_login_is_refused(case: Case, liar: Forger, caplog: pytest.LogCaptureFixture) -> None:
    tamper, kind, says = case
    tamper(liar)
    await refused(log_in(liar), kind, says, caplog)


@pytest.mark.parametrize("path", [WELL_KNOWN, "keys", "token"])
async def test_a_login_is_refused_when_there_is_no_answer(
    path: str, liar: Forger, caplog: pytest.LogCaptureFixture
) -> None:
    silent(path)(liar)
    await refused(log_in(liar, seconds=0.2), Unavailable, "did not answer within 0.2 s", caplog)


async def test_a_login_is_refused_when_nobody_is_there(caplog: pytest.LogCaptureFixture) -> None:
    async with forger() as gone:
        pass
    await refused(log_in(gone), Unavailable, "no connection .ConnectError", caplog)


async def test_a_provider_that_was_away_is_asked_again(liar: Forger) -> None:
    async with provider_of(liar) as provider:
        for path in (WELL_KNOWN, "keys", "token"):
            liar.answers = {path: Answer(b"", 503)}
            with pytest.raises(Unavailable, match="answered 503"):
                await provider.exchange_code(CALLBACK, OPTIONS)
        liar.answers = {}
        assert (await provider.exchange_code(CALLBACK, OPTIONS)).identity.subject == "ada"


async def test_many_logins_at_once_fetch_documents_and_keys_once(liar: Forger) -> None:
    async with provider_of(liar) as provider:
        logins = await asyncio.gather(*(provider.exchange_code(CALLBACK, OPTIONS) for _ in range(8)))
    assert {each.identity.subject for each in logins} == {"ada"}
    assert sorted(each.path for each in liar.asked) == sorted([WELL_KNOWN, "keys", *["token"] * 8])


async def test_a_login_that_is_given_up_takes_nothing_from_the_others(liar: Forger) -> None:
    async with provider_of(liar) as provider:
        first, second = (asyncio.create_task(provider.exchange_code(CALLBACK, OPTIONS)) for _ in range(2))
        await asyncio.sleep(0)  # both have begun
        first.cancel()
        assert (await second).identity.subject == "ada"
        with pytest.raises(asyncio.CancelledError):
            await first
    assert [each.path for each in liar.asked].count(WELL_KNOWN) == 1


async def test_a_key_that_the_provider_takes_back_is_believed_for_an_hour_at_most(liar: Forger) -> None:
    clock = 0.0
    settings = provider_of(liar).settings
    async with OidcProvider(settings, trust=NOBODY, clock=lambda: clock, now=lambda: NOW) as provider:
        await provider.exchange_code(CALLBACK, OPTIONS)
        liar.keys = [jwk(private_key("RSA", 1), kid="two")]
        clock = 3599.0
        await provider.exchange_code(CALLBACK, OPTIONS)
        clock = 3600.0
        with pytest.raises(Unauthenticated, match=PUBLISHED):
            await provider.exchange_code(CALLBACK, OPTIONS)


async def test_tokens_with_foreign_keys_do_not_have_the_keys_fetched_each_time(liar: Forger) -> None:
    liar.header["kid"] = "two"
    async with provider_of(liar) as provider:
        for _ in range(5):
            with pytest.raises(Unauthenticated, match=PUBLISHED):
                await provider.exchange_code(CALLBACK, OPTIONS)
    assert [each.path for each in liar.asked].count("keys") == 1


OTHER = "https://accounts.google.com"
CALLBACKS: dict[str, tuple[Mapping[str, str | None], bool, type[DomainError], str]] = {
    "no state": ({"state": None}, False, Unauthenticated, "state"),
    "an empty state": ({"state": ""}, False, Unauthenticated, "state"),
    "the state of another login": ({"state": "another"}, False, Unauthenticated, "state"),
    "a state that is not ASCII": ({"state": "é\ud800"}, False, Unauthenticated, "state"),
    "a refusal with another state": ({"state": "another", "error": "access_denied"}, False, Unauthenticated, "state"),
    "mixed-up issuer": ({"iss": OTHER}, False, Unauthenticated, "another provider"),
    "an empty issuer": ({"iss": ""}, False, Unauthenticated, "another provider"),
    "mixed-up issuer, promised": ({"iss": OTHER}, True, Unauthenticated, "another provider"),
    "a refusal of a mixed-up issuer": ({"iss": OTHER, "error": "x"}, False, Unauthenticated, "another provider"),
    "an issuer that was promised": ({}, True, Unauthenticated, "does not say which provider"),
    "a refusal without the issuer promised": ({"error": "access_denied"}, True, Unauthenticated, "does not say which"),
    "no code": ({"code": None}, False, Invalid, "no code"),
    "an empty code": ({"code": ""}, False, Invalid, "no code"),
    "a code without end": ({"code": "c" * 5000}, False, Invalid, "no code"),
    "a code of two lines": ({"code": f"{CODE}\n"}, False, Invalid, "no code"),
    "a code of half a letter": ({"code": "\ud800"}, False, Invalid, "no code"),
    "no": ({"error": "access_denied"}, False, Invalid, "You said no there"),
    "no, though there is a code": ({"error": "access_denied", "code": CODE}, False, Invalid, "You said no there"),
    "a login is needed": ({"error": "login_required"}, False, Invalid, "log in there first"),
    "an error with a secret for a name": ({"error": LEAK}, False, Invalid, "does not say why"),
    "an empty error": ({"error": ""}, False, Invalid, "does not say why"),
    "a provider that fails": ({"error": "server_error"}, False, Unavailable, CANNOT),
    "scopes that are not known": ({"error": "invalid_scope"}, False, Unavailable, CONFIGURED),
}


@pytest.mark.parametrize("case", CALLBACKS.values(), ids=CALLBACKS.keys())
async def test_what_a_browser_brings_is_refused_and_the_provider_is_not_asked(
    case: tuple[Mapping[str, str | None], bool, type[DomainError], str], liar: Forger, caplog: pytest.LogCaptureFixture
) -> None:
    brought, promised, kind, says = case
    liar.discovery["authorization_response_iss_parameter_supported"] = promised
    await refused(log_in(liar, msgspec.structs.replace(CALLBACK, **brought)), kind, says, caplog)
    assert "token" not in [each.path for each in liar.asked]


REFRESHES: dict[str, Case] = {
    "about somebody else": (claim(sub="bob"), Unauthenticated, "about somebody else"),
    "alg none": (both(head(alg="none"), part(2, "")), Unauthenticated, ALGORITHM),
    "by a foreign key": (signed("RS256", foreign), Unauthenticated, SIGNED),
    "another audience": (claim(aud="somebody-else"), Unauthenticated, "another client"),
    "another issuer": (claim(iss=OTHER), Unauthenticated, "another issuer"),
    "expired": (claim(exp=1), Unauthenticated, "has expired"),
    "not known any more": (error("invalid_grant"), Unauthenticated, "does not confirm that you are logged in"),
    "a client that is not known": (error("invalid_client", 401), Unavailable, CONFIGURED),
    "a provider that fails": (answer("token", LEAK.encode(), 500), Unavailable, "answered 500"),
    "a provider that fails with an error": (error("invalid_grant", 503), Unavailable, "answered 503"),
    "elsewhere": (answer("token", b"", 307, location=FOREIGN), Unavailable, "answered 307"),
    "HTML": (answer("token", b"<html>"), Unavailable, "holds no tokens"),
    "nothing": (answer("token", {}), Unavailable, "holds no token"),
}


@pytest.mark.parametrize("case", REFRESHES.values(), ids=REFRESHES.keys())
async def test_a_refresh_is_refused(case: Case, liar: Forger, caplog: pytest.LogCaptureFixture) -> None:
    tamper, kind, says = case
    tamper(liar)
    async with provider_of(liar) as provider:
        await refused(provider.refresh(REFRESH_TOKEN, "ada"), kind, says, caplog)


REVOCATIONS: dict[str, Case] = {
    "an error with a secret for a name": (
        answer("revoke", {"error": LEAK}, 400),
        *(Unavailable, "refused to revoke .for a reason of its own"),
    ),
    "a provider that fails": (answer("revoke", LEAK.encode(), 503), Unavailable, "answered 503"),
    "a token of a kind that it keeps": (
        answer("revoke", {"error": "unsupported_token_type", "error_description": LEAK}, 400),
        *(Unavailable, "refused to revoke"),
    ),
    "elsewhere": (answer("revoke", b"", 302, location=FOREIGN), Unavailable, "answered 302"),
}


@pytest.mark.parametrize("case", REVOCATIONS.values(), ids=REVOCATIONS.keys())
async def test_what_is_not_revoked_is_told(case: Case, liar: Forger, caplog: pytest.LogCaptureFixture) -> None:
    tamper, kind, says = case
    tamper(liar)
    async with provider_of(liar) as provider:
        await refused(provider.revoke(REFRESH_TOKEN), kind, says, caplog)


@pytest.mark.parametrize(
    ("tamper", "revoked"),
    [
        (answer("revoke", b""), True),
        (answer("revoke", {"error": "invalid_token"}, 400), True),
        (lambda liar: liar.discovery.pop("revocation_endpoint"), False),
    ],
    ids=["revoked", "not known", "no way to"],
)
async def test_whether_a_token_was_revoked(tamper: Tamper, revoked: bool, liar: Forger) -> None:
    tamper(liar)
    async with provider_of(liar) as provider:
        assert await provider.revoke(REFRESH_TOKEN) == revoked
    assert [each.form["token"] for each in liar.asked if each.path == "revoke"] == [REFRESH_TOKEN] * revoked


BELIEVED: dict[str, Tamper] = {
    "as it is": lambda _: None,
    "PS256": both(signed("PS256", rsa), lambda liar: liar.keys[0].pop("alg")),
    "ES256": publishing("EC", "ES256", use="sig"),
    "EdDSA": publishing("Ed25519", "EdDSA", alg="EdDSA"),
    "no id and one key": lambda liar: liar.header.pop("kid"),
    "no id and one key that fits": both(
        lambda liar: liar.header.pop("kid"), lambda liar: liar.keys.append(jwk(private_key("EC"), kid="two"))
    ),
    "beside broken keys": lambda liar: liar.keys.extend(
        [{}, {"kty": []}, {"kty": "RSA", "n": "?", "e": 1}, {"kty": "AKP"}]
    ),
    "where to find its key, which is not looked at": head(jku="https://evil.example/", x5u="https://evil.example/"),
    "a header that means nothing": head(hint="x"),
    "an audience in a list": claim(aud=[CLIENT_ID]),
    "several audiences and our azp": claim(aud=["b", CLIENT_ID], azp=CLIENT_ID),
    "the hash of its access token": claim(at_hash=create_half_hash(ACCESS_TOKEN, "RS256").decode()),
    "a clock that is slow": claim(exp=NOW - 59),
    "a clock that is fast": claim(iat=NOW + 60, nbf=NOW + 60),
    "an issuer in the answer, not promised": lambda _: None,
    "tokens without an access token": lambda liar: liar.tokens.pop("access_token"),
}


@pytest.mark.parametrize("tamper", BELIEVED.values(), ids=BELIEVED.keys())
async def test_a_login_is_believed(tamper: Tamper, liar: Forger) -> None:
    tamper(liar)
    logged_in = await log_in(liar, msgspec.structs.replace(CALLBACK, iss=liar.issuer))
    assert logged_in.identity.subject == "ada"
    assert logged_in.identity.issuer == liar.issuer
    assert logged_in.refresh_token == REFRESH_TOKEN


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        ({}, ("ada@example.org", True, "Ada")),
        ({"email_verified": "true"}, ("ada@example.org", False, "Ada")),
        ({"email_verified": 1}, ("ada@example.org", False, "Ada")),
        ({"email": None}, (None, False, "Ada")),
        ({"email": ["ada@example.org"]}, (None, False, "Ada")),
        ({"email": "a" * 321}, (None, False, "Ada")),
        ({"name": "Ada\r\nSet-Cookie: x"}, ("ada@example.org", True, None)),
        ({"name": "\u202eadA"}, ("ada@example.org", True, None)),
        ({"name": 1}, ("ada@example.org", True, None)),
    ],
)
async def test_only_what_can_be_shown_is_taken(
    claims: dict[str, Any], told: tuple[str | None, bool, str | None], liar: Forger
) -> None:
    liar.claims.update(claims)
    identity = (await log_in(liar)).identity
    assert (identity.email, identity.email_verified, identity.name) == told


async def test_who_the_id_token_tells_of_is_not_asked_for(liar: Forger) -> None:
    await log_in(liar)
    assert "userinfo" not in [each.path for each in liar.asked]


@pytest.mark.parametrize(
    "tamper",
    [lambda liar: liar.discovery.pop("userinfo_endpoint"), lambda liar: liar.tokens.pop("access_token")],
    ids=["nowhere to ask", "nothing to ask with"],
)
async def test_somebody_may_be_nothing_but_a_subject(tamper: Tamper, liar: Forger) -> None:
    both(thin, tamper)(liar)
    assert (await log_in(liar)).identity == Identity(liar.issuer, "ada")


async def test_what_the_provider_is_asked(liar: Forger) -> None:
    async with provider_of(liar) as provider:
        url = await provider.authorization_url(OPTIONS)
    await log_in(liar)
    assert {name: value for name, (value,) in parse_qs(urlsplit(url).query).items()} == {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": HERE,
        "scope": "openid email profile",
        "state": OPTIONS.state,
        "nonce": OPTIONS.nonce,
        "code_challenge": base64url(hashlib.sha256(OPTIONS.code_verifier.encode()).digest()),
        "code_challenge_method": "S256",
    }
    (asked,) = [each for each in liar.asked if each.path == "token"]
    assert asked.headers["authorization"] == f"Basic {BASIC}"
    assert asked.form == {
        "grant_type": "authorization_code",
        "code": CODE,
        "redirect_uri": HERE,
        "code_verifier": OPTIONS.code_verifier,
    }


async def test_a_provider_that_takes_our_secret_in_the_body_only_gets_it_there(liar: Forger) -> None:
    liar.discovery["token_endpoint_auth_methods_supported"] = ["client_secret_post", "private_key_jwt"]
    await log_in(liar)
    (asked,) = [each for each in liar.asked if each.path == "token"]
    assert "authorization" not in asked.headers
    assert (asked.form["client_id"], asked.form["client_secret"]) == (CLIENT_ID, CLIENT_SECRET)


@pytest.mark.parametrize(
    "issuer",
    [
        "http://idp.example",
        "http://127.0.0.1.idp.example",
        "http://2130706433",
        "idp.example",
        "",
        "https://",
        "https://user:the-client-secret-of-the-forger@idp.example",
        "https://idp.example/#fragment",
        "https://idp.example/?query",
        "https://idp.example:0",
        "https://idp.exämple",
        "https://idp.example/\n",
    ],
)
def test_a_provider_that_cannot_be_trusted_is_not_configured(issuer: str) -> None:
    settings = ProviderSettings(name="Nobody", issuer=issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    with pytest.raises(BadSetting, match="begins with https://") as refusal:
        OidcProvider(settings)
    assert CLIENT_SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    ("issuer", "scopes", "asked"),
    [
        ("https://accounts.google.com", ("openid", "email"), {"access_type": "offline"}),
        ("https://idp.example", ("openid",), {}),
        ("https://idp.example", ("openid", "offline_access"), {"prompt": "consent"}),
    ],
    ids=["Google", "others", "others that are asked"],
)
def test_each_provider_is_asked_for_a_refresh_token_in_its_own_way(
    issuer: str, scopes: tuple[str, ...], asked: dict[str, str]
) -> None:
    settings = ProviderSettings(name="N", issuer=issuer, client_id="c", client_secret=CLIENT_SECRET, scopes=scopes)
    assert for_refresh_token(settings) == asked


def test_a_provider_is_asked_who_somebody_is_or_not_configured() -> None:
    settings = ProviderSettings(
        name="N", issuer="https://a.example", client_id="c", client_secret=CLIENT_SECRET, scopes=("email",)
    )
    with pytest.raises(BadSetting, match="openid"):
        OidcProvider(settings)
