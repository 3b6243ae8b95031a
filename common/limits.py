"""How much somebody may ask in a while: rate limits by user, API key and address, in the memory of each process."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, ip_address, ip_network
from time import monotonic_ns
from typing import Literal

import msgspec
import structlog
from litestar.enums import HttpMethod, ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from common.errors import TooManyRequests
from common.settings import PREFIX, Settings
from common.telemetry import LIMITED

What = Literal["login", "orders", "batches", "changes"]
Other = Literal["reads", "refused"]
"""`refused`: what somebody showed to be let in, and was not believed."""

By = Literal["user", "key", "address"]

KEPT = 100_000
"""Of so many users, keys or addresses is kept when they may ask again; whoever is forgotten starts anew."""

SECONDS = {"second": 1, "minute": 60, "hour": 3600}
NANO = 1_000_000_000

log = structlog.get_logger()


class Rate(msgspec.Struct, frozen=True):
    """So many requests in a unit of time. All of them may come at once."""

    count: int
    unit: str

    @classmethod
    def of(cls, text: str) -> "Rate | None":
        """What a setting like `60/minute` says; None for `off`."""
        count, _, unit = text.partition("/")
        return None if text == "off" else cls(int(count), unit)

    @property
    def half(self) -> "Rate":
        return Rate(max(1, self.count // 2), self.unit)


class Limiter:
    """Lets a rate pass for each key, by GCRA (ITU-T I.371), which knows of each only when it is even again.

    Whoever has asked for nothing for a whole unit may take all of the rate at once; what is refused takes nothing.
    Times are whole nanoseconds, which add up exactly.
    """

    def __init__(self, rate: Rate, kept: int = KEPT) -> None:
        self._every = SECONDS[rate.unit] * NANO // rate.count
        self._at_once = (rate.count - 1) * self._every
        self._kept = kept
        self._even: OrderedDict[str, int] = OrderedDict()  # when it is, by key; who asked last is last
        self.rate = rate

    @property
    def known(self) -> int:
        """Of how many it knows when they are even."""
        return len(self._even)

    def wait(self, key: str, now: int) -> int:
        """How long until this key may take one; 0 for now."""
        return max(0, self._even.get(key, now) - self._at_once - now)

    def take(self, key: str, now: int) -> None:
        """Take one, after `wait` said 0."""
        self._even[key] = max(self._even.get(key, now), now) + self._every
        self._even.move_to_end(key)
        if len(self._even) > self._kept:
            self._even.popitem(last=False)


class Limits:
    """All rate limits of a process. With n replicas, somebody whom all of them serve may ask n times as much.

    What changes something counts for the user, for the API key where there is one, and for the address; what only
    reads, not for the address. A key may take half of what its owner may, so that a script that has gone wild leaves
    the rest to the page. Where nobody is known, at a login and when what was shown is not believed, it counts for the
    address alone, and by itself: who guesses blocks nobody who is in.
    """

    def __init__(self, settings: Settings, clock: Callable[[], int] = monotonic_ns) -> None:
        """`clock`: nanoseconds."""
        texts = {
            "login": settings.rate_login,
            "refused": settings.rate_refused,
            "orders": settings.rate_orders,
            "batches": settings.rate_batches,
            "changes": settings.rate_changes,
            "reads": settings.rate_reads,
            "all": settings.rate_address,
        }
        rates = {what: rate for what, text in texts.items() if (rate := Rate.of(text))}
        self._by_user = {what: Limiter(rate) for what, rate in rates.items()}
        self._by_key = {what: Limiter(rate.half) for what, rate in rates.items()}
        self._by_address = {what: Limiter(rate) for what, rate in rates.items() if what in AT_AN_ADDRESS}
        self._clock = clock
        self._trusts_nobody = not settings.trusted_proxies
        self._suspected = False

    def take(
        self, what: What | Other, *, address: str, user: str | None = None, key: str | None = None, look: bool = False
    ) -> None:
        """Count a request: in all that it counts for, or in none. Raises TooManyRequests. `look`: do only that."""
        known, reads = user is not None, what == "reads"
        found: tuple[tuple[By, Limiter | None, str | None], ...] = (
            ("key", self._by_key.get(what), key),
            ("user", self._by_user.get(what), user),
            ("address", self._by_address.get("all" if known else what), None if reads else address),
        )
        limits = [(by, limiter, whose) for by, limiter, whose in found if limiter and whose is not None]
        now = self._clock()
        for by, limiter, whose in limits:
            if wait := limiter.wait(whose, now):
                LIMITED.labels(what, by).inc()
                raise too_many(what, by, limiter.rate, wait)
        for _, limiter, whose in () if look else limits:
            limiter.take(whose, now)

    def suspect_proxy(self, scope: Scope) -> None:
        """Say once that all who come through a proxy are taken for one, if it looks like it."""
        if (
            self._trusts_nobody
            and not self._suspected
            and any(name == b"x-forwarded-for" for name, _ in scope["headers"])
        ):
            self._suspected = True
            mend = f"if it is a proxy of yours, name it in {PREFIX}TRUSTED_PROXIES"
            log.warning("proxy_taken_for_a_client", address=network_of(scope), mend=mend)


AT_AN_ADDRESS = ("login", "refused", "all")
"""What is counted by address."""

OF: Mapping[str, str] = {
    "login": "for logging in",
    "refused": "that show what is not believed",
    "orders": "for orders",
    "batches": "for batches",
    "changes": "that change something",
    "reads": "that read something",
}
WHO: Mapping[By, str] = {
    "user": "You may send",
    "key": "An API key may send",
    "address": "All at your address may send",
}


def too_many(what: str, by: By, rate: Rate, wait: int) -> TooManyRequests:
    """What somebody is told who has to wait so many nanoseconds."""
    seconds = -(-wait // NANO)  # rounded up
    of = OF[what if by != "address" or what in AT_AN_ADDRESS else "changes"]
    requests = "1 request" if rate.count == 1 else f"{rate.count:,} requests"
    each = f"an {rate.unit}" if rate.unit == "hour" else f"a {rate.unit}"
    return TooManyRequests(f"{WHO[by]} {requests} {of} {each}; ask again in {seconds} s.", retry_after=seconds)


class Limited(ASGIMiddleware):
    """Counts requests before they are looked at; stands after `RequiresUser` where there is one."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, what: What) -> None:
        self.what = what

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        assert scope["type"] == ScopeType.HTTP
        user = scope.get("user")
        reads = scope["method"] == HttpMethod.GET and user is not None  # a login may begin with a GET
        count("reads" if reads else self.what, scope, user=user and user.id, key=user and user.key and str(user.key))
        await next_app(scope, receive, send)


def count(
    what: What | Other, scope: Scope, *, user: str | None = None, key: str | None = None, look: bool = False
) -> None:
    """Count a request at its address, as `Limits.take` does. Raises TooManyRequests."""
    limits: Limits = scope["litestar_app"].state.limits
    try:
        limits.take(what, address=network_of(scope), user=user, key=key, look=look)
    except TooManyRequests:
        limits.suspect_proxy(scope)
        raise


def network_of(scope: Scope) -> str:
    """Whose address a request comes from: of IPv6 the first 64 bits, which is what one customer has at least."""
    host = (scope.get("client") or ("unknown", 0))[0]
    if ":" not in host:
        return host
    try:
        address = ip_address(host)
    except ValueError:
        return host[:64]
    assert isinstance(address, IPv6Address)
    return str(address.ipv4_mapped or ip_network((address.packed[:8] + bytes(8), 64)))
