"""What msgspec refused, in words."""

from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from common.explain import explain


class Thing(msgspec.Struct, forbid_unknown_fields=True):
    """Something with numbers in it."""

    few: Annotated[int, Meta(ge=1, le=10)] = 1
    many: Annotated[int, Meta(ge=1)] | None = None
    named: dict[str, dict[str, int]] = {}
    listed: list[int] = []
    free: dict[str, Any] = {}


HUGE = "9" * 5000
REFUSED = {
    "a number that has its limits": (f'{{"few": {HUGE}}}', ["few"], "Expected `int` from 1 to 10"),
    "a number of any size": (f'{{"many": {HUGE}}}', ["many"], "Expected `int` of at least 1 and fewer digits"),
    "a number that may be anything": (f'{{"free": {{"a": {HUGE}}}}}', ["free"], "Expected a smaller number"),
    "something in an object that has any names": ('{"named": {"a": {"b": "c"}}}', ["named"], "Expected `int`"),
    "something in a list": ('{"listed": [1, 2, "c"]}', ["listed", "2"], "Expected `int`"),
    "a name": ('{"fewer": 1}', ["fewer"], "Unknown; there are few, many, named, listed, free"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_was_refused_is_told_with_its_place_and_what_is_allowed(what: str) -> None:
    body, path, message = REFUSED[what]
    with pytest.raises(msgspec.ValidationError) as refusal:
        msgspec.json.decode(body, type=Thing)
    assert explain(str(refusal.value), Thing) == (path, message)
