"""Whose page asks, by what browsers say in Origin and Host; and our cookie among others."""

from typing import Any

import pytest

from common.auth import Authenticator, User, cookie
from common.errors import DomainError, Forbidden
from common.settings import Settings

DEV = Settings(auth="dev")
PUBLIC = Settings(auth="dev", public_url="https://tickets.example.org")
NAMED = Settings(auth="dev", host="shop.internal")
AT = "http://127.0.0.1:8080"


def asked(**headers: str) -> Any:
    """The scope of a request with these headers."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "scheme": "http", "headers": raw, "query_string": b""}


HERE = [
    "localhost",
    "LOCALHOST:8080",
    "shop.localhost:8080",
    "127.0.0.1:8080",
    "127.8.9.1",
    "[::1]:8080",
    "10.1.2.3:80",
]
NOT_HERE = [
    *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost"),
    *("", "shop.internal", "127.0.0.1@evil.example", "localhost/", "[evil.example]", "127.0.0.1:8080:1", "127.0.0.1 x"),
]


@pytest.mark.parametrize("host", HERE)
async def test_a_page_of_this_machine_is_ours(host: str) -> None:
    page = asked(host=host, origin=f"http://{host}")
    Authenticator(DEV).require_own_page(page)
    ada = asked(host=host, origin=f"http://{host}", authorization="Bearer dev:ada")
    assert await Authenticator(DEV).user(ada) == User("ada")


@pytest.mark.parametrize("host", NOT_HERE)
@pytest.mark.parametrize("says_origin", [True, False])  # a browser leaves it out where a page reads from its own host
async def test_a_name_that_others_made_lead_here_is_not_ours(host: str, says_origin: bool) -> None:
    origin = {"origin": f"http://{host}"} if says_origin else {}
    with pytest.raises(Forbidden, match=r"^Host: "):
        await Authenticator(DEV).user(asked(host=host, authorization="Bearer dev:eve:operator", **origin))
    if says_origin:
        with pytest.raises(Forbidden, match=r"^Host: "):
            Authenticator(DEV).require_own_page(asked(host=host, **origin))


async def test_the_names_that_the_settings_say_are_ours() -> None:
    for settings, host, origin in (
        (NAMED, "shop.internal:8080", "http://shop.internal:8080"),
        (PUBLIC, "tickets.example.org", "https://tickets.example.org"),
        (PUBLIC, "127.0.0.1:8080", "https://tickets.example.org"),  # behind a proxy that calls us so
    ):
        page = asked(host=host, origin=origin, authorization="Bearer dev:ada")
        assert await Authenticator(settings).user(page) == User("ada")


async def test_a_program_that_says_no_origin_is_believed() -> None:
    assert await Authenticator(DEV).user(asked(host="127.0.0.1:8080", authorization="Bearer dev:ada")) == User("ada")


ALIKE = ["http://u@127.0.0.1:8080", "http://u:p@127.0.0.1:8080", f"{AT}/", f"{AT}/a", f"{AT}?a", f"{AT}#a", f" {AT}"]
OTHERS = ["", "null", "http://127.0.0.1", "https://127.0.0.1:8080", "http://127.0.0.1:8081", "ftp://127.0.0.1:8080"]


@pytest.mark.parametrize("origin", ALIKE + OTHERS + [f"{AT}\n", "127.0.0.1:8080", "//127.0.0.1:8080", f"{AT} {AT}"])
async def test_an_origin_is_scheme_host_and_port_and_nothing_else(origin: str) -> None:
    for settings in (DEV, Settings(auth="dev", public_url=AT)):
        with pytest.raises(Forbidden, match=r"^Origin: "):
            Authenticator(settings).require_own_page(asked(host="127.0.0.1:8080", origin=origin))
        with pytest.raises(Forbidden, match=r"^Origin: "):
            await Authenticator(settings).user(
                asked(host="127.0.0.1:8080", origin=origin, authorization="Bearer dev:ada")
            )


def test_the_port_that_a_scheme_means_may_be_said() -> None:
    Authenticator(PUBLIC).require_own_page(asked(host="any", origin="https://Tickets.example.org:443"))


ODD = ['a={"x": 1}', "a=[1,2]", 'a="b', "a", "", "=b", "a=b=c", "a@b=c", "ä=ö", 'a="x; y"', "$Version=1", "expires=x"]


@pytest.mark.parametrize("odd", ODD)
def test_a_cookie_is_found_whatever_the_others_are(odd: str) -> None:
    for text in (f"{odd}; s=good", f"s=good; {odd}", f"{odd};s=good;{odd}", f"{odd} ; \ts=good "):
        assert cookie(asked(cookie=text), "s") == "good"
    assert cookie(asked(cookie=odd), "s") is None


def test_a_cookie_is_what_was_sent_the_first_of_exactly_its_name() -> None:
    assert cookie(asked(cookie='s="a\\073b"'), "s") == '"a\\073b"'
    assert cookie(asked(cookie="s=1=2"), "s") == "1=2"
    assert cookie(asked(cookie="S=no; xs=no; s =yes; s=no"), "s") == "yes"
    assert cookie(asked(cookie="__Host-s=no"), "s") is None
    assert cookie(asked(), "s") is None


SHOWN = [{"authorization": "Bearer dev"}, {"cookie": "boxoffice-session=x"}]


def test_what_was_shown_is_told_from_nothing() -> None:
    authenticator = Authenticator(DEV)
    assert all(authenticator.shown(asked(**headers)) for headers in SHOWN)
    ticket = asked()
    ticket["type"] = "websocket"
    ticket["query_string"] = b"ticket=x"
    assert authenticator.shown(ticket)
    assert not authenticator.shown(asked(cookie="boxoffice-csrf=x; other=y"))


async def test_a_refused_page_is_told_no_more_than_it_said() -> None:
    with pytest.raises(DomainError) as refused:
        Authenticator(DEV).require_own_page(asked(host="h" * 5000, origin="http://" + "h" * 5000))
    assert len(refused.value.detail) < 300
