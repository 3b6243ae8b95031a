"""Rules run again over recorded history: two timelines of each aggregate, and where they part."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, get_args
from uuid import UUID

import msgspec
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from common.aggregate import Decider
from common.events import (
    BookListing,
    BookOpened,
    BookSoldOut,
    Event,
    OrderCancelled,
    OrderCompleted,
    OrderCreated,
    PaymentStarted,
    encode,
    type_of,
)
from services.cli.decide import RULES
from services.cli.decide_worker import Outcome, Replay, Row, Setup, rules_in
from services.cli.system import DECIDERS
from services.orders.domain import ORDERS, Book, CancelOrder, KeepBook, PlaceOrder
from tests.commands import NOON, Decision, commands_of, played
from tests.given import recorded

TICKET, FIRST, SECOND, CARD = (UUID(int=number) for number in range(1, 5))
DEADLINE = NOON + timedelta(minutes=15)
LISTING = BookListing("Opening night", 2500, "EUR", 2, 4, True, 1)

opened = BookOpened(TICKET, LISTING, NOON)
created = OrderCreated(FIRST, TICKET, "ada", "Opening night", 2, 2500, "EUR", DEADLINE, NOON)
paying = PaymentStarted(FIRST, TICKET, CARD, NOON)
completed = OrderCompleted(FIRST, TICKET, "ada", 2, CARD, 5000, "EUR", NOON)
sold_out = BookSoldOut(TICKET, "Opening night", 2, NOON)
cancelled = OrderCancelled(FIRST, TICKET, "ada", 2, "expired", DEADLINE)
again = OrderCreated(SECOND, TICKET, "bob", "Opening night", 2, 2500, "EUR", DEADLINE, NOON)


def rows(*decisions: Decision, subject: str = f"orders.{TICKET}", first: int = 1) -> Iterator[Row]:
    """Decisions as the log has them."""
    events = [(number, event) for number, decision in enumerate(decisions) for event in decision]
    stamped = recorded([event for _, event in events])
    for sequence, ((number, _), event) in enumerate(zip(events, stamped, strict=True), start=first):
        yield sequence, subject, type_of(type(event)), NOON.isoformat(), f"cause-{number}", encode(event)


def tried(
    told: Iterable[Row], *deciders: Decider[Any, Any, Any], after: int = 0, folds: bool = True, tries: bool = True
) -> Outcome:
    """What comes of trying these rules."""
    rules = {(decider.name, event): decider for decider in deciders for event in events_of(decider)}
    replay = Replay(Setup((), after, folds, tries), rules)
    for row in told:
        replay.take(row)
    return replay.outcome()


def events_of(decider: Decider[Any, Any, Any]) -> tuple[type[Event], ...]:
    return get_args(decider.events) or (decider.events,)


def with_rules(**changes: Any) -> Decider[Any, Any, Any]:
    """The rules of orders, but for these."""
    return msgspec.structs.replace(ORDERS, **changes)


def test_what_today_rules_decide_again_does_not_differ() -> None:
    outcome = tried(rows([opened], [created], [paying], [completed, sold_out]), ORDERS)
    assert outcome == Outcome(events=5, aggregates=1, decisions=4, as_recorded=0, unruled=0, findings=[])


def test_a_decision_that_lacks_an_event_differs() -> None:
    def decide(command: Any, book: Book) -> Any:
        return ORDERS.decide(command, book)[:1]

    outcome = tried(rows([opened], [created], [paying], [completed, sold_out]), with_rules(decide=decide))
    (finding,) = outcome.findings
    assert finding.differing == 1
    assert finding.recorded == finding.tried, "nothing of the state hangs on it"
    assert finding.first
    assert (finding.first.sequence, finding.first.command["type"]) == (4, "CompleteOrder")
    assert [event["type"] for event in finding.first.recorded] == ["order_completed", "book_sold_out"]
    assert [event["type"] for event in finding.first.tried] == ["order_completed"]


def test_what_is_refused_today_happens_to_the_record_only_and_what_follows_differs_too() -> None:
    def decide(command: Any, book: Book) -> Any:
        if isinstance(command, PlaceOrder) and command.buyer_id == "ada":
            command = msgspec.structs.replace(command, quantity=5)
        return ORDERS.decide(command, book)

    (finding,) = tried(rows([opened], [created], [paying], [cancelled], [again]), with_rules(decide=decide)).findings
    assert finding.first
    assert finding.first.refused == "Conflict: quantity: at most 4 in one order, got 5."
    assert finding.first.tried == []
    assert finding.differing == 3, "the order, its payment and its end; the next order is the same"
    assert finding.recorded != finding.tried


def test_an_event_that_says_something_else_differs_though_no_state_shows_it() -> None:
    def decide(command: Any, book: Book) -> Any:
        made = ORDERS.decide(command, book)
        return [msgspec.structs.replace(e, amount=1) if isinstance(e, OrderCompleted) else e for e in made]

    told = list(rows([opened], [created], [paying], [completed, sold_out]))
    (finding,) = tried(told, with_rules(decide=decide)).findings
    assert finding.first
    assert finding.first.command["type"] == "CompleteOrder"
    assert [event.get("amount") for event in finding.first.tried] == [1, None]
    assert (finding.differing, finding.recorded == finding.tried) == (1, True)


def test_rules_that_fail_are_told_as_a_decision_that_differs() -> None:
    def decide(command: Any, book: Book) -> Any:
        return ORDERS.decide(command, book) if isinstance(command, KeepBook) else [1 // 0]

    (finding,) = tried(rows([opened], [created]), with_rules(decide=decide)).findings
    assert finding.first
    assert finding.first.refused == "decide fails: ZeroDivisionError: integer division or modulo by zero"


def test_what_was_before_is_folded_and_not_decided_again() -> None:
    def decide(command: Any, book: Book) -> Any:
        return ORDERS.decide(command, book) if isinstance(command, CancelOrder) else []

    outcome = tried(rows([opened], [created], [cancelled]), with_rules(decide=decide), after=2)
    assert (outcome.decisions, outcome.findings) == (1, [])
    outcome = tried(rows([opened], [created], [cancelled]), with_rules(decide=decide), after=1)
    assert (outcome.decisions, [finding.differing for finding in outcome.findings]) == (2, [2])
    assert tried(rows([opened], [created]), with_rules(decide=decide), after=2).aggregates == 0


def test_an_event_that_follows_another_decision_is_taken_as_recorded() -> None:
    outcome = tried(rows([opened], [created], [paying], [completed], [sold_out], [cancelled]), ORDERS, after=4)
    assert outcome.as_recorded == 1


def test_rules_that_do_not_know_commands_are_taken_as_recorded() -> None:
    outcome = tried(rows([opened], [created]), with_rules(asks=None))
    assert (outcome.decisions, outcome.as_recorded, outcome.findings) == (0, 2, [])


def test_an_aggregate_that_does_not_fold_is_a_finding_of_its_own() -> None:
    def evolve(book: Book, event: Any) -> Any:
        if isinstance(event, OrderCancelled):
            raise KeyError(event.order_id)
        return ORDERS.evolve(book, event)

    other = f"orders.{SECOND}"
    told = [*rows([opened], [created], [cancelled], [again]), *rows([opened], [created], subject=other, first=5)]
    (finding,) = tried(told, with_rules(evolve=evolve)).findings
    assert finding.subject == f"orders.{TICKET}"
    assert finding.unfolded
    assert (finding.unfolded.sequence, finding.unfolded.error) == (3, f"KeyError: {FIRST!r}")


def test_events_without_rules_are_counted() -> None:
    assert tried(rows([opened], [created], subject=f"tickets.{TICKET}"), ORDERS).unruled == 2


def test_two_codes_are_compared_by_the_digests_of_their_states() -> None:
    def evolve(book: Book, event: Any) -> Any:
        after = ORDERS.evolve(book, event)
        return msgspec.structs.replace(after, taken=0) if isinstance(event, OrderCreated) else after

    told = list(rows([opened], [created]))
    (record,) = tried(told, ORDERS, tries=False).findings
    (same,) = tried(told, ORDERS, folds=False).findings
    (other,) = tried(told, with_rules(evolve=evolve), folds=False).findings
    assert (record.tried, same.recorded, same.differing, other.differing) == (b"", b"", 0, 0)
    assert record.recorded == same.tried != other.tried


def test_all_rules_there_are_can_be_tried_and_know_their_commands() -> None:
    found = [rules for _, places in RULES.values() for place in places for rules in rules_in(place)]
    assert sorted(map(id, found)) == sorted(map(id, DECIDERS)), "add what is missing to RULES"
    assert [rules.name for rules in found if rules.asks is None] == []


@pytest.mark.parametrize("decider", DECIDERS, ids=[f"{n}-{decider.name}" for n, decider in enumerate(DECIDERS)])
@settings(max_examples=100, deadline=None)
@drawn(data=st.data())
def test_whatever_was_commanded_is_decided_again_in_the_same_way(
    decider: Decider[Any, Any, Any], data: st.DataObject
) -> None:
    decisions = played(decider, data.draw(commands_of(decider)))
    told = list(rows(*decisions, subject=f"{decider.name}.{TICKET}"))
    both = tried(told, decider)
    assert both.findings == []
    assert both.decisions + both.as_recorded >= len(decisions)
    (apart,) = tried(told, decider, folds=False).findings or (None,)
    (record,) = tried(told, decider, tries=False).findings or (None,)
    if apart and record:
        assert (apart.differing, apart.tried) == (0, record.recorded)
