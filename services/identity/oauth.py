"""What this service asks of whoever knows people: to log them in, to still know them, and to forget that we asked."""

import secrets
from typing import Protocol, Self

import msgspec

RANDOM_BYTES = 32
"""Of every value that nobody may guess; in base64url it is a `code_verifier` of the shortest length (RFC 7636, 4.1)."""


class LoginOptions(msgspec.Struct, frozen=True):
    """One attempt to log in. It is kept bound to the browser that began it, and serves once.

    `redirect_uri` is where the provider sends the browser back to, to the letter as it is registered there.
    """

    redirect_uri: str
    state: str
    nonce: str
    code_verifier: str

    @classmethod
    def new(cls, redirect_uri: str) -> Self:
        """With values that nobody can guess."""
        return cls(redirect_uri, *(secrets.token_urlsafe(RANDOM_BYTES) for _ in range(3)))


class Callback(msgspec.Struct, frozen=True):
    """What the browser brings back from the provider: the parameters of the address it is sent to."""

    state: str | None = None
    code: str | None = None
    error: str | None = None
    iss: str | None = None


class Identity(msgspec.Struct, frozen=True):
    """Who somebody is at a provider: issuer and subject are the key, for ever.

    The rest is what they are called there today; an email that is not verified belongs to anybody.
    """

    issuer: str
    subject: str
    email: str | None = None
    email_verified: bool = False
    name: str | None = None


class LoggedIn(msgspec.Struct, frozen=True):
    """Somebody, and the provider's refresh token, if it gave one: otherwise the one of their last login is still good.

    It is a secret of theirs: only `Sealer` may write it down.
    """

    identity: Identity
    refresh_token: str | None


class Refreshed(msgspec.Struct, frozen=True):
    """The provider still knows them. `refresh_token` is the one to keep from now on; `identity`: if it told anew."""

    refresh_token: str
    identity: Identity | None


class OAuthService(Protocol):
    """A provider that logs people in. Every method raises Unavailable when it does not answer as it should."""

    async def authorization_url(self, options: LoginOptions) -> str:
        """Where to send the browser."""
        ...

    async def exchange_code(self, callback: Callback, options: LoginOptions) -> LoggedIn:
        """Who came back. `options` are those of the login that this browser began, and are thrown away before this.

        Raises Unauthenticated for what is not to be believed, Invalid when the provider or its user refused.
        """
        ...

    async def refresh(self, token: str, subject: str) -> Refreshed:
        """Ask whether `subject` still is somebody there. Raises Unauthenticated when not."""
        ...

    async def revoke(self, token: str) -> bool:
        """Have the provider forget a refresh token; False: it has no way to, and forgets when it likes."""
        ...
