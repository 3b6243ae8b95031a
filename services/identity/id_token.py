"""Whether an ID token says who somebody is: OpenID Connect Core 3.1.3.7, and what is known to be tried against it."""

import hmac
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
from authlib.oidc.core.util import create_half_hash  # type: ignore[import-untyped]  # authlib has no types
from joserfc import jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwk import ECKey, JWKRegistry, Key, OKPKey
from joserfc.util import urlsafe_b64decode
from msgspec import Meta

from common.errors import Unauthenticated

ALGORITHMS: Mapping[str, str | None] = {"RS256": None, "PS256": None, "ES256": "P-256", "EdDSA": "Ed25519"}
"""How a token may be signed, and on which curve (None: with RSA), whatever it says itself.

Nothing that a secret signs which both sides know, and never nothing.
"""

KINDS = ("RSA", "EC", "OKP")
"""Of keys."""

RSA_BITS = range(2048, 8193)
"""Of a key: fewer can be broken, and more take long."""

LEEWAY = 60
"""Seconds that the clocks of two servers may differ."""

Subject = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[ -~]+(?!\n)$")]


class Header(msgspec.Struct, frozen=True):
    """What is looked at before a signature is. Where a token says its key may be found is not."""

    alg: str
    kid: str | None = None
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    b64: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Claims(msgspec.Struct, frozen=True):
    """What an ID token says. Times are seconds since 1970."""

    iss: str
    sub: Subject
    aud: str | list[str]
    exp: float
    iat: float
    nbf: float | None = None
    nonce: str | None = None
    azp: str | None = None
    at_hash: str | None = None
    email: Any = None
    email_verified: Any = False
    name: Any = None


class KeySet(msgspec.Struct, frozen=True):
    """A JWKS as it comes (RFC 7517, 5)."""

    keys: list[dict[str, Any]]


class Registry(jws.JWSRegistry):
    """Knows our algorithms and no others."""

    def __init__(self) -> None:
        super().__init__(strict_check_header=False)  # a header that means nothing to us means nothing

    def get_alg(self, name: str) -> Any:
        """Without joserfc's warning that RFC 9864 has a newer name for EdDSA: providers say this one."""
        if name not in ALGORITHMS:
            raise UnsupportedAlgorithmError("Not one of ours")
        return self.algorithms[name]


REGISTRY = Registry()


def header_of(token: str) -> Header:
    """What a token says of itself. Raises Unauthenticated for what would not be believed whoever has signed it."""
    try:
        header = msgspec.json.decode(urlsafe_b64decode(token.partition(".")[0].encode()), type=Header)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        raise refused("is not a signed token") from None
    if header.alg not in ALGORITHMS:
        raise refused(f"has to be signed by one of {', '.join(ALGORITHMS)}")
    if header.crit is not msgspec.UNSET or header.b64 is not msgspec.UNSET:
        raise refused("needs an extension that is not known here")
    return header


def claims_of(token: str, key: Key) -> Claims:
    """What a token says, as it was signed with `key`. Raises Unauthenticated."""
    try:
        payload = jws.deserialize_compact(token, key, registry=REGISTRY).payload
    except (JoseError, ValueError, TypeError):
        raise refused("is not signed by the provider") from None
    try:
        return msgspec.json.decode(payload or b"", type=Claims)
    except (ValueError, RecursionError) as error:
        # Which claim, and not what it says.
        about = f" ({error})" if isinstance(error, msgspec.ValidationError) else ""
        raise refused(f"does not say what an ID token has to{about}") from None


def check(claims: Claims, *, issuer: str, client_id: str, now: float) -> None:
    """That it is about this provider, this client and this time. Raises Unauthenticated."""
    if claims.iss != issuer:
        raise refused("is from another issuer")
    audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud
    if client_id not in audiences:
        raise refused("is for another client")
    if claims.azp != client_id and (claims.azp is not None or len(audiences) > 1):
        raise refused("was given to another client (azp)")
    if claims.exp <= now - LEEWAY:
        raise refused("has expired")
    if claims.iat > now + LEEWAY or (claims.nbf or 0) > now + LEEWAY:
        raise refused("is from the future; the clock of this server or of the provider is wrong")


def check_login(claims: Claims, *, nonce: str) -> None:
    """That it answers this login and no other. Raises Unauthenticated."""
    if claims.nonce is None or not same(claims.nonce, nonce):
        raise refused("answers another login (nonce)")


def check_access_token(claims: Claims, header: Header, access_token: str | None) -> None:
    """That what came beside it is what it came with (3.1.3.6). Raises Unauthenticated."""
    if claims.at_hash is None:
        return
    expected: bytes = create_half_hash(access_token or "", header.alg)
    if not same(claims.at_hash, expected.decode()):
        raise refused("came with another access token (at_hash)")


def same(given: str, expected: str) -> bool:
    """Compares without telling by the time it takes how much of it was right."""
    return hmac.compare_digest(given.encode(errors="surrogatepass"), expected.encode(errors="surrogatepass"))


def keys_in(body: bytes) -> list[Key]:
    """The keys of a JWKS with which a token may be signed; others are left out. Raises ValueError for what is none."""
    found = []
    for each in msgspec.json.decode(body, type=KeySet).keys:
        if each.get("kty") not in KINDS or not is_good_size(each):
            continue
        try:
            found.append(JWKRegistry.import_key(each))
        except (JoseError, ValueError, TypeError, KeyError, AttributeError):  # one broken key breaks no other
            continue
    return found


def is_good_size(key: Mapping[str, Any]) -> bool:
    """Whether an RSA key as it comes is of a length to work with; others have the one of their curve."""
    if key["kty"] != "RSA":
        return True
    modulus = key.get("n")
    if not isinstance(modulus, str):
        return False
    try:
        return int.from_bytes(urlsafe_b64decode(modulus.encode())).bit_length() in RSA_BITS
    except ValueError:
        return False


def key_for(header: Header, keys: Iterable[Key]) -> Key | None:
    """The key that a token says it is signed with: by its id, or the only one that fits if it names none."""
    fitting = [each for each in keys if fits(each, header)]
    return fitting[0] if len(fitting) == 1 or (fitting and header.kid is not None) else None


def fits(key: Key, header: Header) -> bool:
    curve = key.curve_name if isinstance(key, ECKey | OKPKey) else None
    return (
        header.kid in (None, key.kid)
        and curve == ALGORITHMS[header.alg]
        and key.get("use") in (None, "sig")
        and key.get("alg") in (None, header.alg)
    )


def refused(why: str) -> Unauthenticated:
    """What is wrong with an ID token, and never what is in it."""
    return Unauthenticated(f"Your login is not believed: the provider's ID token {why}. Log in again.")
