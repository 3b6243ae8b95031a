"""What the command line says when it is not let in."""

import pytest

from services.cli.who import Who

KEY = "boxoffice_01920c3c7a3e7cc48a3e3d1f0c5b9a10_secret"


@pytest.mark.parametrize(
    ("who", "status", "headers", "says"),
    [
        (Who("ada"), 429, {"Retry-After": "7"}, "http://shop does not let ada in: No. Try again in 7 s."),
        (Who("ada"), 429, {}, "http://shop does not let ada in: No. Try again later."),
        (Who("ada"), 403, {}, "http://shop does not let ada in: No. Be somebody who may, with --user."),
        (Who("ada", KEY), 403, {}, "http://shop does not let the holder of the API key in: No."),
    ],
)
def test_who_is_refused_is_told_what_to_do(who: Who, status: int, headers: dict[str, str], says: str) -> None:
    assert who.refused("http://shop", status, b'{"detail": "No."}', headers).detail == says


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'"no"'])
def test_what_says_no_problem_is_told_by_its_status(body: bytes) -> None:
    told = Who("ada").refused("http://shop", 403, body, {}).detail
    assert told == "http://shop does not let ada in: it answers 403. Be somebody who may, with --user."


def test_a_key_is_sent_and_not_shown() -> None:
    who = Who("ada", KEY)
    assert who.headers == {"Authorization": f"Bearer {KEY}"}
    assert KEY not in f"{who!r} {who} {who.name} {who.refused('http://shop', 401, b'', {})!r}"
