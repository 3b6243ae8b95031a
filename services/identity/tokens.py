"""The tokens that we issue: signed with our own key, verified by everybody with its public half."""

import re
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet

from common.auth import User
from common.clock import new_id_text
from common.credentials import ALGORITHMS, ISSUER, Claims, Use, verified
from common.settings import BadSetting

ACCESS = timedelta(minutes=5)
"""How long an access token is believed; what somebody may do is looked at again when it is renewed."""

TICKET = timedelta(seconds=30)
"""How long a ticket for a WebSocket is good, once."""

PEM = re.compile(r"-----BEGIN [A-Z ]+-----.+?-----END [A-Z ]+-----", re.DOTALL)


def new_signing_key() -> str:
    """A private key on P-256, in PEM (PKCS 8)."""
    key = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


class Issuer:
    """Signs tokens with the first of some keys; others may still be in use."""

    def __init__(self, signing_key: str) -> None:
        """`signing_key`: as in IdentitySettings. Raises BadSetting."""
        try:
            keys = [ECKey.import_key(pem) for pem in PEM.findall(signing_key)]
        except (JoseError, ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it wants a password
            raise BadSetting("BOXOFFICE_SIGNING_KEY: Expected private keys in PEM") from error
        if not keys or not all(key.is_private and key.curve_name == "P-256" for key in keys):
            mend = "make one with: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"
            raise BadSetting(f"BOXOFFICE_SIGNING_KEY: Expected private keys on the curve P-256, in PEM; {mend}")
        for key in keys:
            key.ensure_kid()
        self._key = keys[0]
        self._keys = KeySet(list(keys))

    @property
    def public_keys(self) -> list[dict[str, Any]]:
        """What others verify with (RFC 7517)."""
        return [{**key, "use": "sig", "alg": ALGORITHMS[0]} for key in self._keys.as_dict(private=False)["keys"]]

    def access(self, user: User, csrf: str, at: datetime) -> str:
        """An access token; `csrf` is the digest of what a page sends beside it, or empty."""
        return self._signed("access", at, ACCESS, **named(user), csrf=csrf)

    def refresh(
        self, user_id: str, session_id: UUID, generation: int, csrf: str, at: datetime, expires_at: datetime
    ) -> str:
        """A refresh token."""
        return self._signed("refresh", at, expires_at - at, sub=user_id, sid=session_id, gen=generation, csrf=csrf)

    def ticket(self, user: User, at: datetime) -> str:
        """A ticket for one WebSocket."""
        return self._signed("ticket", at, TICKET, **named(user))

    def read_refresh(self, token: str, at: datetime) -> Claims:
        """What a refresh token says. Raises Unauthenticated."""
        return verified(token, self._keys, "refresh", at)

    def _signed(self, use: Use, at: datetime, life: timedelta, **more: Any) -> str:
        claims = Claims(
            iss=ISSUER,
            aud=use,
            jti=new_id_text(),
            iat=at.timestamp(),
            exp=(at + life).timestamp(),
            **more,
        )
        header = {"alg": ALGORITHMS[0], "kid": self._key.kid, "typ": f"{use}+jwt"}
        return jwt.encode(header, msgspec.to_builtins(claims), self._key)


def named(user: User) -> dict[str, Any]:
    """Whom a token lets in, as its claims say it."""
    scopes = None if user.scopes is None else sorted(user.scopes)
    told = {"sub": user.id, "role": user.role, "ver": user.version, "sid": user.session, "kid": user.key}
    return told | {"scopes": scopes}
