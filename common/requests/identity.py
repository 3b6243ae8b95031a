"""What the identity service can be asked: which keys its tokens are signed with, and whose an API key is."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta

from common.auth import UserId
from common.events import Role
from common.requests import Endpoint


class WantedKeys(msgspec.Struct, frozen=True):
    """Which keys tokens are signed with."""


class PublicKeys(msgspec.Struct, frozen=True):
    """A set of keys as RFC 7517 has it: of them, tokens may be signed with any."""

    keys: list[dict[str, Any]]


class GivenKey(msgspec.Struct, frozen=True):
    """An API key that somebody gave. `digest`: SHA-256 of its secret, in base 16: the secret goes no further."""

    key_id: UUID
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class KeyHolder(msgspec.Struct, frozen=True):
    """Whom an API key lets in, with what, and how long at most. `version`: of the user who has this role."""

    user_id: UserId
    role: Role
    scopes: list[str]
    expires_at: datetime | None
    version: int = 0


PUBLIC_KEYS = Endpoint("identity", "public_keys", WantedKeys, PublicKeys)

CHECK_KEY = Endpoint("identity", "check_key", GivenKey, KeyHolder)
"""Raises Unauthenticated, for whatever reason it is not believed."""
