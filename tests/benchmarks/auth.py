"""What it costs to verify who asks: POST /api/orders to readable, against the same with names that are believed.

It costs CPU and nothing else, so what counts are orders for each second of CPU that the service uses: of those for each
second of the clock, whatever else goes on in a machine takes more than verification does.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec

from common.aggregate import Aggregate
from common.auth import KEY_PREFIX, User
from common.clock import new_id, now
from common.credentials import KEPT, digest_of
from common.requests import Responder
from common.runtime import Platform, running
from services.identity.domain import DEV, KEYS, USERS, CreateKey, Keys, LogIn, Users, place_id_of
from services.identity.requests import answering
from services.identity.tokens import Issuer, new_signing_key
from tests.benchmarks.orders import CONNECTIONS, MANY_TICKETS, Ours, details, sell
from tests.benchmarks.row import Measured, Row, Scene, alternate, at_least

SCOPES = ("orders:read", "orders:write")


class Identity(msgspec.Struct, frozen=True):
    """What the identity service issues, to buyers of the names that they have in the reference."""

    issuer: Issuer
    users: Users
    keys: Keys

    @classmethod
    @asynccontextmanager
    async def answers(cls, platform: Platform) -> AsyncIterator["Identity"]:
        """It is asked over NATS, as always."""
        log = platform.event_log
        own = cls(Issuer(new_signing_key()), Aggregate(USERS, log), Aggregate(KEYS, log))
        answered = answering(own.issuer, own.users, own.keys, dev=True)
        async with running([Responder("identity", answered, platform.client)]):
            yield own

    async def tokens(self, each: int = 1) -> list[str]:
        """Access tokens, as many for each buyer."""
        buyers = [User(f"buyer-{number}", "buyer", session=new_id()) for number in range(CONNECTIONS)]
        return [self.issuer.access(buyer, "", now()) for _ in range(each) for buyer in buyers]

    async def api_keys(self) -> list[str]:
        """One for each buyer."""
        return [await self._api_key(f"buyer-{number}") for number in range(CONNECTIONS)]

    async def _api_key(self, name: str) -> str:
        await self.users.handle(place_id_of(name), LogIn(DEV, name, "buyer", "buyer", now()))
        key_id, secret = new_id(), secrets.token_urlsafe(32)
        await self.keys.handle(key_id, CreateKey(key_id, name, "bench", SCOPES, digest_of(secret), now(), None))
        return f"{KEY_PREFIX}{key_id.hex}_{secret}"


async def measure(scene: Scene, issued: Callable[[Identity], Awaitable[list[str]]]) -> Measured:
    """Orders for each second of CPU by buyers with what identity `issued`; the reference are those with names."""

    async def sold(side: Ours, bearers: Sequence[str] = ()) -> float:
        side.tell(orders_per_s=await sell(scene, side, MANY_TICKETS, bearers))
        return 1000 / side.told["cpu_ms_per_order"][-1]

    async with scene.system() as platform, Identity.answers(platform) as identity:
        ours, theirs = Ours(platform), Ours(platform)

        async def known() -> float:
            return await sold(ours, await issued(identity))

        figures = await alternate(scene, known, lambda: sold(theirs))
    return Measured("/s", *figures, details=details(MANY_TICKETS, ours, theirs))


AGAINST = "the same with `Bearer dev:<name>`"
TOKENS = Row(
    "auth-token",
    "POST /api/orders to readable for each second of CPU, with access tokens",
    AGAINST,
    at_least(0.9),
    lambda scene: measure(scene, Identity.tokens),
)
API_KEYS = Row(
    "auth-key", "the same, with API keys", AGAINST, at_least(0.9), lambda scene: measure(scene, Identity.api_keys)
)
NEW_TOKENS = Row(
    "auth-new-token",
    "the same, with an access token for each order, which none remembers",
    AGAINST,
    at_least(0.5),
    lambda scene: measure(scene, lambda identity: identity.tokens(KEPT // CONNECTIONS + 50)),
)
