"""How much may be asked in a while, by the clock of the test."""

from typing import Any

import msgspec
import pytest
from litestar.types import Scope

from common.errors import TooManyRequests
from common.limits import NANO, SECONDS, Limiter, Limits, Rate, network_of
from common.settings import BadSetting, Settings, load

NAMES = ("login", "refused", "orders", "batches", "changes", "reads", "address")
OFF: dict[str, Any] = {f"rate_{name}": "off" for name in NAMES}


class Watch:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.time = 1_000 * NANO

    def __call__(self) -> int:
        return self.time


def limits(**rates: str) -> tuple[Limits, Watch]:
    """With these rates and no others."""
    watch = Watch()
    return Limits(msgspec.structs.replace(Settings(), **(OFF | rates)), watch), watch


def passed(limits: Limits, *given: Any, **more: Any) -> int:
    """How many requests pass at once, up to 100."""
    for count in range(100):
        try:
            limits.take(*given, **({"address": "10.0.0.1"} | more))
        except TooManyRequests:
            return count
    return 100


def test_all_of_a_rate_may_come_at_once_and_then_each_waits_for_its_share_of_the_time() -> None:
    limiter = Limiter(Rate(4, "minute"))
    now = 50 * NANO
    for _ in range(4):
        assert limiter.wait("ada", now) == 0
        limiter.take("ada", now)
    assert limiter.wait("ada", now) == 15 * NANO
    assert limiter.wait("ada", now + 10 * NANO) == 5 * NANO
    assert limiter.wait("ada", now + 15 * NANO) == 0
    limiter.take("ada", now + 15 * NANO)
    assert limiter.wait("ada", now + 15 * NANO) == 15 * NANO
    assert limiter.wait("bob", now) == 0


@pytest.mark.parametrize("rate", [Rate(60, "minute"), Rate(7, "second"), Rate(1, "hour"), Rate(999_999_999, "hour")])
def test_over_a_long_time_no_more_pass_than_the_rate_and_no_fewer(rate: Rate) -> None:
    limiter, unit = Limiter(rate), SECONDS[rate.unit] * NANO
    step = max(1, unit // rate.count // 3)
    now, count = 0, 0
    while count < 1_000:
        while limiter.wait("ada", now) == 0 and count < 1_000:
            limiter.take("ada", now)
            count += 1
        now += step
    at_once = min(rate.count, 1_000)
    assert abs((count - at_once) * (unit // rate.count) - now) <= 4 * step


def test_whoever_rests_saves_no_more_than_the_rate() -> None:
    found, watch = limits(rate_orders="5/second")
    assert passed(found, "orders", user="ada") == 5
    watch.time += 86_400 * NANO
    assert passed(found, "orders", user="ada") == 5


def test_only_so_many_keys_are_kept_and_whoever_asked_longest_ago_is_forgotten() -> None:
    limiter, later = Limiter(Rate(1, "hour"), kept=3), 3_600 * NANO
    for name in ("ada", "bob", "eve"):
        limiter.take(name, 0)
    limiter.take("ada", later)
    limiter.take("sam", later)
    assert limiter.known == 3
    assert [limiter.wait(name, later) > 0 for name in ("ada", "bob", "sam")] == [True, False, True]
    limiter.take("sam", later)
    limiter.take("eve", later)
    assert [limiter.wait(name, later) > 0 for name in ("ada", "eve", "sam")] == [True, True, True]
    for number in range(1_000):
        limiter.take(str(number), later)
    assert limiter.known == 3


def test_what_one_user_has_used_up_is_there_for_another_and_for_other_things() -> None:
    found, _ = limits(rate_orders="3/minute", rate_changes="4/minute", rate_reads="6/minute")
    assert passed(found, "orders", user="ada") == 3
    assert passed(found, "orders", user="bob") == 3
    assert passed(found, "changes", user="ada") == 4
    assert passed(found, "reads", user="ada") == 6
    assert passed(found, "batches", user="ada") == 100


def test_a_key_may_take_half_of_what_its_owner_may_and_counts_for_the_owner() -> None:
    found, _ = limits(rate_batches="10/minute")
    assert passed(found, "batches", user="sam", key="one") == 5
    assert passed(found, "batches", user="sam", key="two") == 5
    assert passed(found, "batches", user="sam") == 0
    assert passed(found, "batches", user="eve", key="three") == 5
    assert passed(found, "batches", user="eve") == 5
    single, _ = limits(rate_batches="1/minute")
    assert passed(single, "batches", user="sam", key="one") == 1


def test_all_from_one_address_share_what_changes_something_and_not_what_reads() -> None:
    found, _ = limits(rate_address="7/minute", rate_orders="5/minute", rate_reads="50/minute")
    assert passed(found, "orders", user="ada") == 5
    assert passed(found, "changes", user="bob") == 2
    assert passed(found, "orders", user="eve") == 0
    assert passed(found, "reads", user="eve") == 50
    assert passed(found, "orders", user="eve", address="10.0.0.2") == 5


def test_a_login_counts_for_its_address_alone() -> None:
    found, _ = limits(rate_login="3/minute", rate_address="2/minute")
    assert passed(found, "login") == 3
    assert passed(found, "login", address="10.0.0.2") == 3
    assert passed(found, "orders", user="ada") == 2


def test_what_is_not_believed_counts_for_its_address_and_takes_nothing_from_logins() -> None:
    found, _ = limits(rate_refused="3/minute", rate_login="2/minute", rate_address="1/minute")
    assert passed(found, "refused", look=True) == 100, "to look takes nothing"
    assert passed(found, "refused") == 3
    assert passed(found, "refused", look=True) == 0
    assert passed(found, "refused", look=True, address="10.0.0.2") == 100
    assert passed(found, "login") == 2
    assert passed(found, "orders", user="ada") == 1
    with pytest.raises(TooManyRequests, match="All at your address may send 3 requests that show what is not believed"):
        found.take("refused", address="10.0.0.1")


def test_what_is_refused_takes_nothing_from_any_limit() -> None:
    found, watch = limits(rate_orders="2/minute", rate_address="4/minute")
    assert passed(found, "orders", user="ada") == 2
    for _ in range(50):
        with pytest.raises(TooManyRequests):
            found.take("orders", user="ada", address="10.0.0.1")
    assert passed(found, "orders", user="bob") == 2, "the address has them still"
    watch.time += 30 * NANO
    assert passed(found, "orders", user="ada") == 1, "they did not make it wait longer"


@pytest.mark.parametrize(
    ("rates", "given", "detail", "after"),
    [
        (
            {"rate_orders": "2/minute"},
            {"user": "ada"},
            "You may send 2 requests for orders a minute; ask again in 30 s.",
            30,
        ),
        (
            {"rate_orders": "1/hour"},
            {"user": "ada"},
            "You may send 1 request for orders an hour; ask again in 3600 s.",
            3600,
        ),
        (
            {"rate_orders": "7/minute"},
            {"user": "ada"},
            "You may send 7 requests for orders a minute; ask again in 9 s.",
            9,
        ),
        (
            {"rate_orders": "5/second"},
            {"user": "ada"},
            "You may send 5 requests for orders a second; ask again in 1 s.",
            1,
        ),
        (
            {"rate_orders": "4/minute"},
            {"user": "ada", "key": "k"},
            "An API key may send 2 requests for orders a minute; ask again in 30 s.",
            30,
        ),
        (
            {"rate_address": "1200/minute"},
            {"user": "ada"},
            "All at your address may send 1,200 requests that change something a minute; ask again in 1 s.",
            1,
        ),
    ],
)
def test_a_refusal_says_what_is_limited_and_when_to_come_back(
    rates: dict[str, str], given: dict[str, Any], detail: str, after: int
) -> None:
    found, _ = limits(**rates)
    most = int("".join(each for each in detail.partition(" request")[0] if each.isdigit()))
    for _ in range(most):
        found.take("orders", address="10.0.0.1", **given)
    with pytest.raises(TooManyRequests) as refused:
        found.take("orders", address="10.0.0.1", **given)
    assert (refused.value.detail, refused.value.context) == (detail, {"retry_after": after})


@pytest.mark.parametrize(
    ("client", "network"),
    [
        (("10.0.0.1", 1), "10.0.0.1"),
        (("::ffff:10.0.0.1", 1), "10.0.0.1"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::", 1), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1), "fe80::/64"),
        ((":not an address", 1), ":not an address"),
        (None, "unknown"),
    ],
)
def test_an_address_of_ipv6_counts_with_all_that_its_owner_has(client: Any, network: str) -> None:
    scope: Any = {"type": "http", "client": client}
    whose: Scope = scope
    assert network_of(whose) == network


@pytest.mark.parametrize("rate", ["off", "1/second", "60/minute", "999999999/hour"])
def test_a_rate_is_a_number_and_a_unit_or_off(rate: str) -> None:
    assert load(Settings, {"BOXOFFICE_RATE_ORDERS": rate}).rate_orders == rate


@pytest.mark.parametrize(
    "rate", ["", "60", "0/minute", "60/day", "-1/minute", "1.5/second", "60 / minute", "OFF", "1/hour\n"]
)
def test_what_is_no_rate_is_told(rate: str) -> None:
    with pytest.raises(BadSetting, match=r"Expected a rate like 60/minute \(or /second, /hour\), or off") as refused:
        load(Settings, {"BOXOFFICE_RATE_ORDERS": rate})
    assert str(refused.value).startswith(f"BOXOFFICE_RATE_ORDERS={rate!r}")


def test_every_rate_has_a_default_that_limits() -> None:
    defaults = {name: getattr(Settings(), name) for name in OFF}
    assert all(Rate.of(rate) for rate in defaults.values()), defaults
