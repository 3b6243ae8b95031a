"""A provider that nobody should believe: it says and signs whatever a test tells it to, and keeps what it was asked."""

import base64
import functools
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from litestar.types import Receive, Scope, Send

from tests.asgi import body_of, door, serving

CLIENT_ID, CLIENT_SECRET = "boxoffice", "the-client-secret-of-the-forger"
ACCESS_TOKEN, REFRESH_TOKEN = "an-access-token-of-the-forger", "a-refresh-token-of-the-forger"

NOW = 1_800_000_000
"""Seconds since 1970: the time of which it believes that it is."""

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Headers = Mapping[str, str]


class Answer(msgspec.Struct, frozen=True):
    """What is answered: JSON, or a body as it is."""

    body: Any
    status: int = 200
    headers: Headers = {}

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else msgspec.json.encode(self.body)


SILENCE = Answer(b"", 0)
"""Nothing, for as long as somebody waits for it."""


class Asked(msgspec.Struct, frozen=True):
    """A request as it came."""

    path: str
    headers: Headers
    form: Headers


@functools.cache
def private_key(kind: str, number: int = 0) -> PrivateKey:
    """A key of its kind; `number` tells several apart. They are made once, since RSA takes a while."""
    del number
    match kind:
        case "RSA" | "small":
            return rsa.generate_private_key(65537, 2048 if kind == "RSA" else 1024)  # it is to be refused
        case "EC":
            return ec.generate_private_key(ec.SECP256R1())
        case "P-384":
            return ec.generate_private_key(ec.SECP384R1())
    return ed25519.Ed25519PrivateKey.generate()


def base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def number(value: int) -> str:
    return base64url(value.to_bytes((value.bit_length() + 7) // 8))


def jwk(key: PrivateKey, **members: Any) -> dict[str, Any]:
    """The public half."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e), **members}
    if isinstance(public, ec.EllipticCurvePublicKey):
        point, size = public.public_numbers(), (public.key_size + 7) // 8
        x, y = (base64url(each.to_bytes(size)) for each in (point.x, point.y))
        return {"kty": "EC", "crv": f"P-{public.key_size}", "x": x, "y": y, **members}
    return {"kty": "OKP", "crv": "Ed25519", "x": base64url(public.public_bytes_raw()), **members}


def pem(key: PrivateKey) -> bytes:
    """The public half, as some take it for a secret."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signature(algorithm: str, key: PrivateKey | bytes, text: bytes) -> bytes:
    """As RFC 7518 and RFC 8037 have it, whether or not anybody should sign so."""
    if isinstance(key, bytes):
        return hmac.digest(key, text, hashlib.sha256)
    if isinstance(key, rsa.RSAPrivateKey):
        salted = padding.PSS(padding.MGF1(SHA256()), salt_length=32)
        return key.sign(text, salted if algorithm.startswith("PS") else padding.PKCS1v15(), SHA256())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.key_size + 7) // 8
        return b"".join(each.to_bytes(size) for each in decode_dss_signature(key.sign(text, ec.ECDSA(SHA256()))))
    return key.sign(text)


class Forger:
    """As it is made, it is honest; a test changes one thing. `<path>` of `answers` is without the leading slash."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.reset()

    def reset(self) -> None:
        """Honest again, and asked nothing yet."""
        issuer = self.issuer
        self.key: PrivateKey | bytes = private_key("RSA")
        self.algorithm = "RS256"
        self.header: dict[str, Any] = {"alg": "RS256", "kid": "one", "typ": "JWT"}
        self.claims: dict[str, Any] = {
            "iss": issuer,
            "sub": "ada",
            "aud": CLIENT_ID,
            "iat": NOW,
            "exp": NOW + 300,
            "email": "ada@example.org",
            "email_verified": True,
            "name": "Ada",
        }
        self.discovery: dict[str, Any] = {
            "issuer": issuer,
            "authorization_endpoint": f"{issuer}/authorize",
            "token_endpoint": f"{issuer}/token",
            "jwks_uri": f"{issuer}/keys",
            "revocation_endpoint": f"{issuer}/revoke",
            "userinfo_endpoint": f"{issuer}/userinfo",
        }
        self.keys: list[dict[str, Any]] = [jwk(private_key("RSA"), kid="one", use="sig", alg="RS256")]
        self.tokens: dict[str, Any] = {
            "access_token": ACCESS_TOKEN,
            "refresh_token": REFRESH_TOKEN,
            "token_type": "Bearer",
            "expires_in": 300,
        }
        self.garble: Callable[[str], str] = str
        self.answers: dict[str, Answer] = {}
        self.asked: list[Asked] = []

    def sign_as(self, algorithm: str, key: PrivateKey | bytes) -> None:
        """Sign so from now on, and say so; what is published stays."""
        self.header["alg"], self.algorithm, self.key = algorithm, algorithm, key

    def id_token(self) -> str:
        """What it would hand out now."""
        text = ".".join(base64url(msgspec.json.encode(each)) for each in (self.header, self.claims))
        return self.garble(f"{text}.{base64url(signature(self.algorithm, self.key, text.encode()))}")

    def answer(self, path: str) -> Answer:
        if path in self.answers:
            return self.answers[path]
        match path:
            case ".well-known/openid-configuration":
                return Answer(self.discovery)
            case "keys":
                return Answer({"keys": self.keys})
            case "token":
                return Answer({"id_token": self.id_token(), **self.tokens})
            case "userinfo":
                return Answer({each: self.claims.get(each) for each in ("sub", "email", "email_verified", "name")})
            case "revoke":
                return Answer(b"")
        return Answer(b"There is nothing here", 404)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix("/")
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        form = dict(parse_qsl((await body_of(receive)).decode()))
        self.asked.append(Asked(path, headers, form))
        answer = self.answer(path)
        if answer is SILENCE:
            await receive()  # until the other side has enough of it
            return
        raw = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        await send({"type": "http.response.body", "body": answer.content, "more_body": False})


@asynccontextmanager
async def forger() -> AsyncIterator[Forger]:
    """One on loopback."""
    async with door() as listening:
        host, port = listening.getsockname()
        forger = Forger(f"http://{host}:{port}")
        async with serving(forger, listening):
            yield forger
