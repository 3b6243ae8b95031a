"""What msgspec refuses is told for people: without names that only Python knows."""

import datetime as dt
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from msgspec import Meta

from common.explain import explain


class Thing(msgspec.Struct, forbid_unknown_fields=True):
    """Something with a field."""

    name: str


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        (int, '"1"', "Expected a whole number"),
        (int | None, "[]", "Expected a whole number or null"),
        (str | None, "{}", "Expected text or null"),
        (float, "true", "Expected a number"),
        (bool, "1", "Expected true or false"),
        (list[int], "7", "Expected a list"),
        (Thing, "7", "Expected an object"),
        (UUID, "7", "Expected a UUID"),
        (dt.datetime, "[]", "Expected a time"),
        (Annotated[dt.datetime, Meta(tz=True)], '"2030-01-01T20:00:00"', "Expected a time with a timezone component"),
        (Annotated[int, Meta(ge=1)], "0", "Expected a whole number of at least 1"),
        (Annotated[int, Meta(le=9)], "10", "Expected a whole number of at most 9"),
        (Annotated[int, Meta(multiple_of=5)], "7", "Expected a whole number that is a multiple of 5"),
        (Annotated[float, Meta(gt=0)], "-1.5", "Expected a number above 0.0"),
        (Annotated[float, Meta(lt=-1)], "2.5", "Expected a number below -1.0"),
        (Annotated[str, Meta(min_length=1)], '""', "Expected text of at least 1 character"),
        (Annotated[str, Meta(max_length=2)], '"abc"', "Expected text of at most 2 characters"),
        (Annotated[list[int], Meta(min_length=2)], "[1]", "Expected a list of at least 2 entries"),
        (Annotated[list[int], Meta(max_length=1)], "[1, 2]", "Expected a list of at most 1 entry"),
        (Annotated[dict[str, int], Meta(min_length=1)], "{}", "Expected an object of at least 1 field"),
        (tuple[int, int], "[1]", "Expected a list of 2 entries"),
        (Annotated[int, Meta(ge=1, le=9)], "1" * 5000, "Expected a whole number from 1 to 9"),
        (Annotated[int, Meta(ge=1)], "1" * 5000, "Expected a whole number of at least 1 and fewer digits"),
        (Literal["a", "b"], '"c"', "Expected one of a, b"),
        (Annotated[str, Meta(pattern="^x$", description="An x")], '"y"', "Expected an x"),
    ],
)
def test_what_is_refused_is_told_in_words(kind: Any, body: str, told: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.json.decode(body, type=kind)
    assert explain(str(refused.value), kind) == ([], told)


@pytest.mark.parametrize(
    ("body", "path", "told"),
    [
        ("{}", "name", "Required"),
        ('{"name": 1}', "name", "Expected text"),
        ('{"name": "x", "size": 1}', "size", "Unknown; there are name"),
    ],
)
def test_it_says_where(body: str, path: str, told: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.json.decode(body, type=Thing)
    assert explain(str(refused.value), Thing) == ([path], told)


class Numbers(msgspec.Struct, forbid_unknown_fields=True):
    """Something with numbers in it."""

    few: Annotated[int, Meta(ge=1, le=10)] = 1
    many: Annotated[int, Meta(ge=1)] | None = None
    named: dict[str, dict[str, int]] = {}
    listed: list[int] = []
    free: dict[str, Any] = {}
    chosen: dict[Literal["a", "b"], list[Literal["x", "y"]]] = {}


HUGE = "9" * 5000
REFUSED = {
    "a number that has its limits": (f'{{"few": {HUGE}}}', ["few"], "Expected a whole number from 1 to 10"),
    "a number of any size": (f'{{"many": {HUGE}}}', ["many"], "Expected a whole number of at least 1 and fewer digits"),
    "a number that may be anything": (f'{{"free": {{"a": {HUGE}}}}}', ["free"], "Expected a smaller number"),
    "something in an object that has any names": ('{"named": {"a": {"b": "c"}}}', ["named"], "Expected a whole number"),
    "something in a list": ('{"listed": [1, 2, "c"]}', ["listed", "2"], "Expected a whole number"),
    "a name": ('{"fewer": 1}', ["fewer"], "Unknown; there are few, many, named, listed, free, chosen"),
    "a name in an object that has some": ('{"chosen": {"c": []}}', ["chosen"], "Expected one of a, b"),
    "a choice in an object": ('{"chosen": {"a": ["x", "z"]}}', ["chosen", "1"], "Expected one of x, y"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_was_refused_is_told_with_its_place_and_what_is_allowed(what: str) -> None:
    body, path, message = REFUSED[what]
    with pytest.raises(msgspec.ValidationError) as refusal:
        msgspec.json.decode(body, type=Numbers)
    assert explain(str(refusal.value), Numbers) == (path, message)
