"""What an inbox may become, as sentences."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest

from common.errors import NotFound
from common.events import (
    DeliveryGivenUp,
    DeliveryRepeated,
    NotificationEvent,
    NotificationRaised,
    NotificationRead,
    NotificationsAcknowledged,
    NotificationsRead,
    PreferencesChanged,
    WebhooksWanted,
)
from services.notification.domain import (
    ATTEMPTS,
    INBOXES_DECIDER,
    Acknowledge,
    Inbox,
    InboxCommand,
    MarkAllRead,
    MarkRead,
    Raise,
    SendAgain,
    SetPreferences,
    WantWebhooks,
    gap_after,
    weight_of,
)
from tests.given import Given

ONE, OTHER, ORDER = (UUID(int=n) for n in range(1, 4))
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

raised = NotificationRaised(ONE, "ada", "order.created", ORDER, "You hold 2.", {"quantity": 2}, NOON)
other = NotificationRaised(OTHER, "ada", "order.completed", ORDER, "Paid.", {}, NOON)


def given(*events: NotificationEvent) -> Given[InboxCommand, Inbox, NotificationEvent]:
    return Given(INBOXES_DECIDER, *events)


def repeated(attempt: int, *ids: UUID, at: datetime = NOON) -> DeliveryRepeated:
    return DeliveryRepeated("ada", "websocket", list(ids), attempt, at)


def again(*ids: UUID, at: datetime = NOON) -> SendAgain:
    return SendAgain("ada", "websocket", ids, at)


def test_the_same_thing_is_told_once() -> None:
    tell = Raise(ONE, "ada", "order.created", ORDER, "You hold 2.", {"quantity": 2}, NOON)
    given().when(tell).then(raised)
    given(raised).when(tell).then()


def test_what_is_raised_says_whether_there_may_be_webhooks_for_it() -> None:
    wanted = WebhooksWanted("ada", NOON)
    given().when(WantWebhooks("ada", NOON)).then(wanted)
    given(wanted).when(WantWebhooks("ada", NOON)).then()
    tell = Raise(ONE, "ada", "order.created", ORDER, "You hold 2.", {"quantity": 2}, NOON)
    given(wanted).when(tell).then(msgspec.structs.replace(raised, webhooks=True))


def test_acknowledgements_only_go_forward() -> None:
    five = NotificationsAcknowledged("ada", 5, NOON)
    given(raised).when(Acknowledge("ada", 5, NOON)).then(five)
    given(raised, five).when(Acknowledge("ada", 5, NOON)).then()
    given(raised, five).when(Acknowledge("ada", 4, NOON)).then()


def test_one_is_read_once_and_nobody_elses_is() -> None:
    read = NotificationRead("ada", ONE, NOON)
    given(raised).when(MarkRead("ada", ONE, NOON)).then(read)
    given(raised, read).when(MarkRead("ada", ONE, NOON)).then()
    given(raised).when(MarkRead("ada", OTHER, NOON)).refused(NotFound, "no notification")


def test_all_are_read_up_to_a_cursor() -> None:
    read = NotificationsRead("ada", 7, NOON)
    given(raised).when(MarkAllRead("ada", 7, NOON)).then(read)
    given(raised, read).when(MarkAllRead("ada", 6, NOON)).then()


def test_what_is_not_acknowledged_is_sent_ten_times_and_then_rests() -> None:
    before: list[NotificationEvent] = [raised]
    at = NOON
    for attempt in range(2, ATTEMPTS + 1):
        given(*before).when(again(ONE, at=at)).then(repeated(attempt, ONE, at=at))
        before.append(repeated(attempt, ONE, at=at))
        at += timedelta(seconds=gap_after(attempt))
    given_up = DeliveryGivenUp("ada", "websocket", [ONE], ATTEMPTS, at)
    given(*before).when(again(ONE, at=at)).then(given_up)
    given(*before, given_up).when(again(ONE, at=at + timedelta(days=1))).then()


@pytest.mark.parametrize("attempt", range(2, ATTEMPTS + 1))
def test_nothing_is_sent_again_before_twice_the_gap_before_has_passed(attempt: int) -> None:
    due_at = NOON + timedelta(seconds=5 * 2 ** (attempt - 1))
    given(raised, repeated(attempt, ONE)).when(again(ONE, at=due_at - timedelta(microseconds=1))).then()
    following = (
        repeated(attempt + 1, ONE, at=due_at)
        if attempt < ATTEMPTS
        else DeliveryGivenUp("ada", "websocket", [ONE], ATTEMPTS, due_at)
    )
    given(raised, repeated(attempt, ONE)).when(again(ONE, at=due_at)).then(following)


def test_attempts_are_counted_for_each_notification_and_channel() -> None:
    before, later = (raised, other, repeated(2, ONE)), NOON + timedelta(seconds=gap_after(2))
    given(*before).when(again(ONE, OTHER)).then(repeated(2, OTHER))
    given(*before).when(again(ONE, OTHER, at=later)).then(repeated(2, OTHER, at=later), repeated(3, ONE, at=later))
    by_sse = SendAgain("ada", "sse", [ONE], NOON)
    given(*before).when(by_sse).then(DeliveryRepeated("ada", "sse", [ONE], 2, NOON))


def test_preferences_are_what_was_said_last() -> None:
    quiet = PreferencesChanged("ada", {"sse": ["order.created"]}, NOON)
    given().when(SetPreferences("ada", {"sse": ["order.created"]}, NOON)).then(quiet)
    given(quiet).when(SetPreferences("ada", {"sse": ["order.created"]}, NOON)).then()
    given(quiet).when(SetPreferences("ada", {}, NOON)).then(PreferencesChanged("ada", {}, NOON))


@pytest.mark.parametrize("attempts", [1, ATTEMPTS])
def test_what_was_sent_however_often_can_still_be_acknowledged_and_read(attempts: int) -> None:
    before: list[NotificationEvent] = [raised, *(repeated(n, ONE) for n in range(2, attempts + 1))]
    given(*before).when(MarkRead("ada", ONE, NOON)).then(NotificationRead("ada", ONE, NOON))
    given(*before).when(Acknowledge("ada", 1, NOON)).then(NotificationsAcknowledged("ada", 1, NOON))


def test_an_inbox_weighs_what_is_kept_and_not_what_was_acknowledged() -> None:
    inbox = Inbox()
    for cursor in range(1, 1_000):
        inbox = INBOXES_DECIDER.evolve(inbox, NotificationsAcknowledged("ada", cursor, NOON))
    assert weight_of(inbox) == 1
    for event in (raised, other, NotificationRead("ada", ONE, NOON)):
        inbox = INBOXES_DECIDER.evolve(inbox, event)
    assert weight_of(inbox) == 4
