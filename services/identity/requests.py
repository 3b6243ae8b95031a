"""Answers to what other services ask: with which keys we sign, and whose an API key is."""

from collections.abc import Sequence
from typing import Any

from common.clock import now
from common.errors import Unauthenticated
from common.requests import Answering
from common.requests.identity import CHECK_KEY, PUBLIC_KEYS, GivenKey, KeyHolder, PublicKeys, WantedKeys
from services.identity.domain import DEV, NO_LONGER, Keys, UseKey, Users, place_id_of
from services.identity.tokens import Issuer


def answering(issuer: Issuer, users: Users, keys: Keys, *, dev: bool) -> Sequence[Answering[Any, Any]]:
    """What the identity service can be asked. `dev`: whether keys of developers are believed."""

    async def public_keys(_: WantedKeys) -> PublicKeys:
        return PublicKeys(issuer.public_keys)

    async def check_key(given: GivenKey) -> KeyHolder:
        key = (await keys.handle(given.key_id, UseKey(given.digest, now()))).state
        user = await users.load(place_id_of(key.user_id), fresh=True)
        if user.state.issuer == DEV and not dev:
            raise Unauthenticated(NO_LONGER)
        user.state.let_in_since(key.created_at)
        return KeyHolder(key.user_id, user.state.role, list(key.scopes), key.expires_at, user.version)

    return [Answering(PUBLIC_KEYS, public_keys), Answering(CHECK_KEY, check_key)]
