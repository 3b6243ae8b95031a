"""Histories as operators see them: the state after each event is the fold so far, and what changed says all of it."""

import io
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rpds import HashTrieMap, HashTrieSet

from common.aggregate import Decider
from common.errors import Invalid, Unavailable
from common.event_log import Draft, Recorded, Stored
from common.events import BookListing, Event, ExpirationCompleted
from common.telemetry import Cause
from services.cli import looking
from services.cli.system import DECIDERS
from services.history.causes import Caused, lasting, tree_of
from services.history.timeline import Change, changes, history_of, plain
from services.orders.domain import (
    ORDER_REQUESTS,
    ORDERS,
    Book,
    CancelOrder,
    KeepBook,
    PlaceOrder,
    RequestOrder,
)
from tests.commands import commands_of
from tests.commands import played as decisions_of
from tests.facts import AT
from tests.given import fold

TICKET = UUID(int=7)


def told(number: int, cause: str, stream: str = "ORDERS", **headers: str) -> Stored:
    """An event of a conversation, as it is kept; `number`: its sequence, and its second."""
    at = AT + timedelta(seconds=number)
    headers = {"ce-id": f"event-{number}", "ce-type": "order_created", "ce-time": at.isoformat()} | headers
    return Stored(stream, f"orders.{TICKET}", number, headers | {"causation-id": cause}, b"{}", at)


def shape(caused: Sequence[Caused]) -> list[Any]:
    """A tree as nested lists of sequences."""
    return [[each.sequence, *shape(each.caused)] for each in caused]


@pytest.mark.parametrize(
    ("causes", "roots"),
    [
        ({1: "click", 2: "event-1", 3: "event-1", 4: "event-2"}, {"click": [[1, [2, [4]], [3]]]}),
        ({1: "event-1"}, {"event-1": [[1]]}),
        ({1: "click", 2: "event-2", 3: "event-2"}, {"click": [[1]], "event-2": [[2, [3]]]}),
        ({1: "event-3", 2: "event-1", 3: "event-2"}, {"event-3": [[1, [2, [3]]]]}),
        ({1: "event-2", 2: "event-1", 3: "event-1"}, {"event-2": [[1, [2], [3]]]}),
    ],
    ids=["tree", "itself", "itself-beside-a-click", "cycle", "cycle-with-more"],
)
def test_each_event_of_a_conversation_is_in_its_tree_once(causes: dict[int, str], roots: dict[str, list[Any]]) -> None:
    tree = tree_of("conversation", [told(number, cause) for number, cause in causes.items()])
    assert {root.causation_id: shape(root.caused) for root in tree.roots} == roots
    assert {root.causation_id for root in tree.roots if root.is_event} == roots.keys() - {"click"}


def test_events_with_one_id_or_none_and_their_dead_letters_are_all_in_the_tree() -> None:
    same, none = {"ce-id": "event-1"}, {"ce-id": ""}
    events = [told(1, "click"), told(1, "click", "TICKETS", **same), told(2, "", **none), told(3, "event-1")]
    letters = [told(number, "click", "DEAD", **same) for number in (1, 2)]
    tree = tree_of("conversation", [*letters, *events])
    assert [shape(root.caused) for root in tree.roots] == [[[1, [3], [1], [2]], [1]], [[2]]]


def test_a_chain_of_thousands_is_told_in_pieces_that_whoever_reads_can_take() -> None:
    chain = [told(1, "click"), *(told(number, f"event-{number - 1}") for number in range(2, 5_001))]
    tree = tree_of("conversation", chain)
    found: list[int] = []
    for root in json.loads(msgspec.json.encode(tree))["roots"]:
        assert root["is_event"] == (root["causation_id"] != "click")
        assert root["causation_id"] == (f"event-{found[-1]}" if found else "click")
        below = root["caused"]
        while below:
            (one,) = below
            assert one["waited"] == (1 if found else None)
            found.append(one["sequence"])
            below = one["caused"]
    assert found == list(range(1, 5_001))
    Console(file=io.StringIO()).print(looking.tree_of(tree))


def kept(version: int, capacity: int) -> KeepBook:
    return KeepBook(TICKET, BookListing("Opening night", 100 * version, "EUR", capacity, 4, True, version), AT)


def played(decider: Decider[Any, Any, Any], commands: list[Any]) -> list[Event]:
    """The events that commands come to, one after the other."""
    return [event for decision in decisions_of(decider, commands) for event in decision]


def in_log(decider: Decider[Any, Any, Any], events: list[Event], gap: int = 1) -> list[Recorded]:
    """Events as they stand in a log, `gap` sequences apart."""
    subject = f"{decider.name}.{TICKET}"
    drafts = [Draft.of(event, Cause("conversation", "click")) for event in events]
    return [
        Recorded(subject, gap * number, draft.event, draft.headers("/" + subject))
        for number, draft in enumerate(drafts, start=1)
    ]


def patched(state: Any, changed: Change) -> Any:
    """A state as JSON, with one change made to it."""
    if not changed.path:
        return changed.after
    state = {} if state is None else state
    *way, last = changed.path.removesuffix("[]").split(".")
    place = state
    for name in way:
        place = place[name]
    if changed.path.endswith("[]"):
        kept = [each for each in place[last] if each != changed.before]
        place[last] = sorted(kept if changed.after is msgspec.UNSET else [*kept, changed.after])
    elif changed.after is msgspec.UNSET:
        del place[last]
    else:
        place[last] = changed.after
    return state


def check(decider: Decider[Any, Any, Any], events: list[Event]) -> None:
    log = in_log(decider, events, gap=3)
    told = history_of(DECIDERS, log, whole=True)
    assert [step.sequence for step in told.steps] == [each.sequence for each in log]
    before = plain(decider.initial)
    for number, step in enumerate(told.steps, start=1):
        there = plain(fold(decider, events[:number]))
        assert history_of(DECIDERS, log, at=step.sequence + number % 3, last=1).state == there
        assert plain(step.state) == there
        for changed in step.changes:
            before = patched(before, changed)
        assert before == there
    assert told.state == before


@pytest.mark.parametrize("decider", DECIDERS, ids=[f"{n}-{decider.name}" for n, decider in enumerate(DECIDERS)])
@settings(max_examples=50, deadline=None, print_blob=True)
@given(data=st.data())
def test_the_state_at_every_sequence_is_the_fold_so_far(decider: Decider[Any, Any, Any], data: st.DataObject) -> None:
    if events := played(decider, data.draw(commands_of(decider))):
        check(decider, events)


@given(data=st.data())
@settings(max_examples=100, deadline=None, print_blob=True)
def test_the_state_at_every_sequence_is_the_fold_so_far_of_a_book_that_sells(data: st.DataObject) -> None:
    check(ORDERS, played(ORDERS, [kept(1, 8), *data.draw(commands_of(ORDERS))]))


def test_what_an_event_should_not_have_changed_is_seen_too() -> None:
    """A rule that changes an order which its event does not name."""
    events = played(
        ORDERS,
        [
            kept(1, 8),
            *(PlaceOrder(UUID(int=n), "ada", 1, AT, AT) for n in (1, 2)),
            CancelOrder(UUID(int=1), "buyer", AT),
        ],
    )

    def careless(book: Book, event: Any) -> Book:
        book = ORDERS.evolve(book, event)
        if event == events[-1]:
            wrong = msgspec.structs.replace(book.orders[UUID(int=2)], quantity=3)
            book = msgspec.structs.replace(book, orders=book.orders.insert(wrong.id, wrong))
        return book

    wrong = Decider("orders", ORDERS.events, ORDERS.decide, careless, ORDERS.initial)
    told = history_of([wrong], in_log(ORDERS, events)).steps[-1]
    assert Change(f"orders.{UUID(int=2)}.quantity", 1, 3) in told.changes
    assert Change("taken", 2, 1) in told.changes


def test_only_what_names_an_id_is_shown_of_a_book_and_the_state_is_of_all() -> None:
    events = played(ORDERS, [kept(1, 8), *(PlaceOrder(UUID(int=n), "ada", 1, AT, AT) for n in (1, 2, 3))])
    told = history_of(DECIDERS, in_log(ORDERS, events), about=str(UUID(int=2)))
    assert [step.version for step in told.steps] == [3]
    assert [changed.path for changed in told.steps[0].changes] == ["taken", f"orders.{UUID(int=2)}"]
    assert (told.state["taken"], told.steps[0].who, told.steps[0].waited) == (3, "ada", None)


def test_of_a_large_state_what_is_asked_for_and_what_the_event_names_is_not_left_out() -> None:
    orders = [UUID(int=each) for each in range(100, 130)]
    placed = [PlaceOrder(order_id, "ada", 1, AT + timedelta(hours=1), AT) for order_id in orders]
    events = in_log(ORDERS, played(ORDERS, [kept(1, 100), *placed, CancelOrder(orders[3], "buyer", AT)]))
    whole = history_of([ORDERS], events)
    assert (len(whole.state["orders"]), whole.left_out) == (30, {})
    few = history_of([ORDERS], events, entries=4)
    assert (len(few.state["orders"]), few.left_out) == (4, {"orders": 26})
    assert few.state["orders"].items() <= whole.state["orders"].items()
    assert {name: part for name, part in few.state.items() if name != "orders"} == {
        name: part for name, part in whole.state.items() if name != "orders"
    }
    for order_id in orders:
        one = history_of([ORDERS], events, entries=1, about=str(order_id))
        assert list(one.state["orders"]) == [str(order_id)]
    assert str(orders[3]) in history_of([ORDERS], events, entries=1).state["orders"]
    assert history_of([ORDERS], events, entries=30) == whole


def test_each_event_is_folded_once_also_where_the_state_after_each_is_wanted() -> None:
    events = played(ORDERS, [kept(1, 50), *(PlaceOrder(UUID(int=n), "ada", 1, AT, AT) for n in range(1, 30))])
    folded: list[Event] = []

    def counting(book: Book, event: Any) -> Book:
        folded.append(event)
        return ORDERS.evolve(book, event)

    rules = Decider("orders", ORDERS.events, ORDERS.decide, counting, ORDERS.initial)
    told = history_of([rules], in_log(ORDERS, events), last=10, whole=True)
    assert [plain(step.state)["taken"] for step in told.steps] == list(range(20, 30))
    assert len(folded) == len(events)
    assert history_of(DECIDERS, in_log(ORDERS, events)).steps[0].state is msgspec.UNSET


def test_a_moment_before_the_first_event_is_refused() -> None:
    log = in_log(ORDERS, played(ORDERS, [kept(1, 8)]), gap=5)
    for at in (4, log[0].time - timedelta(seconds=1)):
        with pytest.raises(Invalid, match="begins at sequence 5") as refused:
            history_of(DECIDERS, log, at=at)
        assert refused.value.context["begins"] == log[0].time.isoformat()
    assert history_of(DECIDERS, log, at=log[0].time).state["taken"] == 0


def test_a_moment_before_an_id_is_named_is_refused_with_when_it_is() -> None:
    log = in_log(ORDERS, played(ORDERS, [kept(1, 8), *(PlaceOrder(UUID(int=n), "ada", 1, AT, AT) for n in (1, 2))]), 5)
    for at in (14, log[2].time - timedelta(microseconds=1)):
        with pytest.raises(Invalid, match=f"^at: {UUID(int=2)} is named in {log[0].subject} from sequence 15, "):
            history_of(DECIDERS, log, at=at, about=str(UUID(int=2)))
    assert len(history_of(DECIDERS, log, at=15, about=str(UUID(int=2))).steps) == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(86_400, "1 day"), (3 * 86_400, "3 days"), (900, "15 minutes"), (93_600, "26 hours"), (61, "61 seconds")],
    ids=["day", "days", "minutes", "hours", "seconds"],
)
def test_for_how_long_is_said_in_one_unit(seconds: int, said: str) -> None:
    assert lasting(timedelta(seconds=seconds)) == said


def test_a_history_that_the_rules_cannot_follow_says_at_which_event() -> None:
    """Its beginning is missing: an order is cancelled that was never placed."""
    events = played(
        ORDERS, [kept(1, 8), PlaceOrder(UUID(int=1), "ada", 1, AT, AT), CancelOrder(UUID(int=1), "buyer", AT)]
    )
    with pytest.raises(Unavailable, match=r"event 2 of orders\..* does not follow from those before it: KeyError"):
        history_of(DECIDERS, in_log(ORDERS, [events[0], events[2]]))


def test_a_fact_that_is_alone_on_its_subject_is_its_own_state() -> None:
    drafted = Draft.of(ExpirationCompleted(TICKET, TICKET, AT, AT))
    told = history_of(DECIDERS, [Recorded(f"expiration.{TICKET}", 1, drafted.event, drafted.headers("/x"))])
    assert told.state["order_id"] == str(TICKET)
    assert {changed.path for changed in told.steps[0].changes} == {"type", *ExpirationCompleted.__struct_fields__}


class Part(msgspec.Struct, frozen=True):
    many: "HashTrieMap[str, int]" = HashTrieMap()
    few: dict[str, int] = {}
    some: "HashTrieSet[str]" = HashTrieSet()
    one: int | None = None


@given(
    *(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3)) for _ in range(4)),
    *(st.sets(st.sampled_from("abcd")) for _ in range(2)),
    st.sets(st.sampled_from("abcdefgh")),
)
@settings(max_examples=300, deadline=None)
def test_changes_are_what_makes_one_state_of_another(
    many: dict[str, int],
    then: dict[str, int],
    few: dict[str, int],
    fewer: dict[str, int],
    some: set[str],
    others: set[str],
    likely: set[str],
) -> None:
    before = Part(HashTrieMap(many), few, HashTrieSet(some))
    after = Part(HashTrieMap(then), fewer, HashTrieSet(others), 1)
    state = plain(before)
    for changed in changes(before, after, likely):
        state = patched(state, changed)
    assert state == plain(after)
    assert list(changes(after, after, likely)) == []


def test_a_key_that_was_used_and_a_book_are_told_apart_by_their_events() -> None:
    """Two kinds of aggregate have the same name."""
    asked = played(ORDER_REQUESTS, [RequestOrder(TICKET, "ada", TICKET, 1, None, AT)])
    assert history_of(DECIDERS, in_log(ORDER_REQUESTS, asked)).state["buyer_id"] == "ada"
    assert history_of(DECIDERS, in_log(ORDERS, played(ORDERS, [kept(1, 8)]))).state["taken"] == 0


def test_the_last_steps_of_a_long_history_are_those_of_the_whole() -> None:
    events = played(ORDERS, [kept(1, 50), *(PlaceOrder(UUID(int=n), "ada", 1, AT, AT) for n in range(1, 30))])
    log = in_log(ORDERS, events)
    whole, some = history_of(DECIDERS, log), history_of(DECIDERS, log, last=5)
    assert (some.earlier, [step.changes for step in some.steps]) == (25, [step.changes for step in whole.steps[-5:]])
    assert (whole.earlier, some.state) == (0, whole.state)
