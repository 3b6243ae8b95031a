"""Any commands of any rules: few different ones, so that they meet."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
from hypothesis import strategies as st
from msgspec import Raw, UnsetType

from common.aggregate import Decider
from common.events import BookListing, Event, Operation, Result, TicketDetails
from services.batch.domain import Postponed
from tests.given import fold, recorded

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

Decision = Sequence[Event]

FEW: Mapping[Any, st.SearchStrategy[Any]] = {
    UUID: st.builds(UUID, int=st.integers(1, 3)),
    datetime: st.sampled_from([0, 1, 20, 1440, 4000]).map(lambda minutes: NOON + timedelta(minutes=minutes)),
    str: st.sampled_from(["ada", "bob"]),
    int: st.integers(1, 4),
    float: st.floats(0.1, 1000),
    bool: st.booleans(),
    NoneType: st.none(),
    UnsetType: st.just(msgspec.UNSET),
    Raw: st.sampled_from([Raw(b"{}"), Raw(b'{"a":1}')]),
}


def few(kind: Any) -> st.SearchStrategy[Any]:
    """Few values of a type, so that commands meet."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind in FEW:
        return FEW[kind]
    if kind == dict[str, object]:  # changes of a ticket
        hints = get_type_hints(TicketDetails)
        return st.fixed_dictionaries({}, optional={name: few(hint) for name, hint in hints.items()})
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (Union, UnionType):
        return st.one_of([few(each) for each in inner])
    if origin is dict:
        return st.dictionaries(few(inner[0]), few(inner[1]), max_size=2)
    if origin is not None:
        each = few(inner[0])
        if inner[0] is Result:
            each |= st.builds(Postponed, few(int), error=few(str))
        by_number = (lambda one: one.number) if inner[0] in (Result, Operation) else msgspec.json.encode
        several = st.lists(each, min_size=inner[0] is Operation, max_size=3, unique_by=by_number)
        return several.map(tuple) if origin is tuple else several
    hints = get_type_hints(kind, include_extras=False)
    fields = {name: few(hint) for name, hint in hints.items() if name not in ("version", "type")}
    if kind is BookListing:  # of listings that are withdrawn the book is told otherwise
        fields |= {"on_sale": st.just(True), "version": few(int)}
    return st.builds(kind, **fields)


def commands_of(decider: Decider[Any, Any, Any]) -> st.SearchStrategy[list[Any]]:
    """Commands of all kinds that these rules know, in any order."""
    kinds = get_type_hints(decider.decide)["command"]
    return st.lists(st.one_of([few(kind) for kind in get_args(kinds) or (kinds,)]), max_size=30)


def played(decider: Decider[Any, Any, Any], commands: Sequence[Any]) -> list[Decision]:
    """What commands come to, one after the other; those that are refused leave nothing."""
    decisions: list[Decision] = []
    history: list[Event] = []
    for command in commands:
        try:
            made = recorded(list(decider.decide(command, fold(decider, history))), after=len(history))
        except Exception:  # also of commands that make no sense  # noqa: S112
            continue
        decisions += [made] if made else []
        history += made
    return decisions
