"""What a webhook and what is posted to it may become, as sentences."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from msgspec import UNSET, UnsetType

from common.errors import Conflict, Invalid, NotFound
from common.events import (
    NotificationKind,
    WebhookAttempted,
    WebhookChanged,
    WebhookDelivered,
    WebhookDeliveryEvent,
    WebhookDue,
    WebhookEvent,
    WebhookParked,
    WebhookRedeliveryRequested,
    WebhookRegistered,
    WebhookRemoved,
    WebhookSecretRotated,
)
from services.notification.webhooks import (
    ATTEMPTS,
    BOTH_SIGN,
    DELIVERIES,
    LONGEST_PAUSE,
    WEBHOOKS,
    WEBHOOKS_EACH,
    Answer,
    ChangeWebhook,
    Delivery,
    DeliveryCommand,
    DisableGone,
    ParkDelivery,
    RecordAttempt,
    Redeliver,
    RegisterWebhook,
    Registry,
    RemoveWebhook,
    RotateSecret,
    SendNotification,
    WebhookCommand,
    delivery_id_of,
    pause_after,
)
from tests.given import Given, fold, recorded

HOOK, OTHER, NOTE, KEY = (UUID(int=n) for n in range(1, 5))
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
URL, ELSEWHERE = "https://example.org/hooks", "https://example.net/"
WAY = delivery_id_of(HOOK, NOTE)

registered = WebhookRegistered(HOOK, "ada", URL, None, NOON)
gone = WebhookChanged(HOOK, "ada", URL, None, False, LATER, "gone")
due = WebhookDue(WAY, HOOK, "ada", NOTE, "order.created", "{}", NOON)


def given(*events: WebhookEvent) -> Given[WebhookCommand, Registry, WebhookEvent]:
    return Given(WEBHOOKS, *events)


def given_delivery(*events: WebhookDeliveryEvent) -> Given[DeliveryCommand, Delivery, WebhookDeliveryEvent]:
    return Given(DELIVERIES, *events)


def change(
    url: str | UnsetType = UNSET,
    kinds: list[NotificationKind] | UnsetType | None = UNSET,
    enabled: bool | UnsetType = UNSET,
    webhook_id: UUID = HOOK,
) -> ChangeWebhook:
    return ChangeWebhook(webhook_id, "ada", url, kinds, enabled, LATER)


def changed(url: str = URL, kinds: list[NotificationKind] | None = None, enabled: bool = True) -> WebhookChanged:
    return WebhookChanged(HOOK, "ada", url, kinds, enabled, LATER)


def test_a_webhook_is_registered_once() -> None:
    command = RegisterWebhook(HOOK, "ada", URL, None, NOON)
    given().when(command).then(registered)
    given(registered).when(command).then()
    given(registered, changed(ELSEWHERE)).when(command).then()
    given(registered, WebhookRemoved(HOOK, "ada", LATER)).when(command).refused(Conflict, "was removed")


def test_a_key_of_one_webhook_is_not_for_another() -> None:
    other = RegisterWebhook(HOOK, "ada", ELSEWHERE, None, NOON)
    given(registered).when(other).refused(Invalid, "another webhook", field="Idempotency-Key")


def test_a_user_has_ten_webhooks_at_most_and_may_replace_one() -> None:
    ten = [WebhookRegistered(UUID(int=n), "ada", URL, None, NOON) for n in range(WEBHOOKS_EACH)]
    another = RegisterWebhook(UUID(int=99), "ada", URL, None, NOON)
    given(*ten).when(another).refused(Conflict, "10 webhooks")
    new = WebhookRegistered(UUID(int=99), "ada", URL, None, NOON)
    given(*ten, WebhookRemoved(UUID(int=3), "ada", NOON)).when(another).then(new)


def test_what_is_not_named_stays_as_it_is() -> None:
    given(registered).when(change()).then()
    given(registered).when(change(url=URL, enabled=True, kinds=None)).then()
    given(registered).when(change(url=ELSEWHERE)).then(changed(ELSEWHERE))
    given(registered).when(change(kinds=["batch.failed"])).then(changed(kinds=["batch.failed"]))
    given(registered, changed(kinds=["batch.failed"])).when(change(kinds=None)).then(changed())
    given(registered).when(change(enabled=False)).then(changed(enabled=False))


def test_a_webhook_that_is_not_there_is_not_changed_rotated_or_removed() -> None:
    removed = WebhookRemoved(HOOK, "ada", LATER)
    given().when(change()).refused(NotFound, "no such")
    given(registered).when(change(webhook_id=OTHER)).refused(NotFound, "no such")
    given(registered, removed).when(change(enabled=True)).refused(NotFound, "no such")
    given(registered, removed).when(RotateSecret(HOOK, "ada", None, LATER)).refused(NotFound, "no such")
    given().when(RemoveWebhook(HOOK, "ada", LATER)).refused(NotFound, "no such")


def test_a_webhook_is_removed_once() -> None:
    removed = WebhookRemoved(HOOK, "ada", LATER)
    given(registered).when(RemoveWebhook(HOOK, "ada", LATER)).then(removed)
    given(registered, removed).when(RemoveWebhook(HOOK, "ada", LATER)).then()


def test_one_that_is_gone_is_disabled_unless_it_leads_elsewhere_by_now() -> None:
    disable = DisableGone(HOOK, "ada", URL, LATER)
    given(registered).when(disable).then(gone)
    given(registered, gone).when(disable).then()
    given(registered, changed(ELSEWHERE)).when(disable).then()
    given().when(disable).then()
    assert given(registered, gone).state.webhook(HOOK).because == "gone"
    given(registered, gone).when(change(enabled=True)).then(changed())


def test_a_rotation_is_made_once_for_a_key_and_anew_without_one() -> None:
    second = WebhookSecretRotated(HOOK, "ada", 2, LATER, KEY)
    given(registered).when(RotateSecret(HOOK, "ada", KEY, LATER)).then(second)
    given(registered, second).when(RotateSecret(HOOK, "ada", KEY, LATER)).then()
    third = WebhookSecretRotated(HOOK, "ada", 3, LATER)
    given(registered, second).when(RotateSecret(HOOK, "ada", None, LATER)).then(third)
    given(registered, second, third).when(RotateSecret(HOOK, "ada", KEY, LATER)).then()


def test_the_secret_before_signs_for_a_day() -> None:
    webhook = given(registered, WebhookSecretRotated(HOOK, "ada", 2, LATER)).state.webhook(HOOK)
    assert given(registered).state.webhook(HOOK).secrets_at(LATER) == (1,)
    assert webhook.secrets_at(LATER + BOTH_SIGN - timedelta(seconds=1)) == (2, 1)
    assert webhook.secrets_at(LATER + BOTH_SIGN) == (2,)


def test_all_that_were_the_secret_within_a_day_sign_and_no_rotation_voids_one_of_them() -> None:
    hours = [NOON + timedelta(hours=n) for n in range(5)]
    rotated = [WebhookSecretRotated(HOOK, "ada", n + 1, hours[n]) for n in range(1, 4)]
    webhook = given(registered, *rotated).state.webhook(HOOK)
    assert webhook.secrets_at(hours[4]) == (4, 3, 2, 1)
    assert webhook.secrets_at(hours[1] + BOTH_SIGN) == (4, 3, 2)
    assert webhook.secrets_at(hours[3] + BOTH_SIGN) == (4,)
    assert (webhook.both_sign_until(hours[4]), webhook.both_sign_until(hours[3] + BOTH_SIGN)) == (
        hours[3] + BOTH_SIGN,
        None,
    )
    too_soon = RotateSecret(HOOK, "ada", None, hours[4])
    given(registered, *rotated).when(too_soon).refused(Conflict, "again from 13:00:00 UTC on 2 January 2030")
    then = hours[1] + BOTH_SIGN
    fifth = WebhookSecretRotated(HOOK, "ada", 5, then)
    given(registered, *rotated).when(RotateSecret(HOOK, "ada", None, then)).then(fifth)
    assert given(registered, *rotated, fifth).state.webhook(HOOK).secrets_at(then) == (5, 4, 3, 2)


def test_the_secret_of_a_request_is_known_after_further_rotations() -> None:
    second, third = WebhookSecretRotated(HOOK, "ada", 2, LATER, KEY), WebhookSecretRotated(HOOK, "ada", 3, LATER)
    webhook = given(registered, second, third).state.webhook(HOOK)
    assert (webhook.secret_of(KEY), webhook.secret_of(OTHER), webhook.secret_of(None)) == (2, 3, 3)


def test_a_webhook_wants_what_it_names_and_only_while_it_is_enabled() -> None:
    assert given(registered).state.webhook(HOOK).wants("batch.failed")
    some = given(registered, changed(kinds=["order.created"])).state.webhook(HOOK)
    assert (some.wants("order.created"), some.wants("batch.failed")) == (True, False)
    assert not given(registered, changed(enabled=False)).state.webhook(HOOK).wants("order.created")


def attempt(number: int, at: datetime, answer: Answer, again_at: datetime | None) -> WebhookAttempted:
    assert answer.error
    return WebhookAttempted(WAY, HOOK, number, answer.status, answer.error, 7, at, again_at)


FAILED, FINE, GONE = Answer(503, "Answered 503"), Answer(204, None), Answer(410, "Answered 410 Gone")


def test_a_notification_is_due_once_at_a_webhook() -> None:
    send = SendNotification(WAY, HOOK, "ada", NOTE, "order.created", "{}", NOON)
    given_delivery().when(send).then(due)
    given_delivery(due).when(send).then()


@pytest.mark.parametrize("jitters", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_what_fails_is_tried_ten_times_with_growing_gaps_and_then_parked(jitters: tuple[float, float]) -> None:
    clock, events = NOON, list[WebhookDeliveryEvent]([due])
    gaps: list[float] = []
    while not (delivery := fold(DELIVERIES, recorded(events))).is_over:
        if delivery.again_at:
            gaps.append((delivery.again_at - clock).total_seconds())
            clock = delivery.again_at
        pause = pause_after(delivery.tries + 1, 5, jitters[delivery.attempts % 2])
        events += DELIVERIES.decide(RecordAttempt(delivery.attempts + 1, FAILED, 7, pause, clock), delivery)
    assert sum(isinstance(event, WebhookAttempted) for event in events) == ATTEMPTS
    assert events[-1] == WebhookParked(WAY, HOOK, "attempts", ATTEMPTS, clock)
    assert (len(gaps), gaps) == (ATTEMPTS - 1, sorted(set(gaps)))
    assert (3.75 <= gaps[0] <= 5, gaps[-1]) == (True, LONGEST_PAUSE)


def test_it_is_tried_until_it_arrives() -> None:
    again = NOON + timedelta(seconds=5)
    once = attempt(1, NOON, FAILED, again)
    given_delivery(due).when(RecordAttempt(1, FAILED, 7, 5, NOON)).then(once)
    arrived = WebhookDelivered(WAY, HOOK, 2, 204, 7, again)
    given_delivery(due, once).when(RecordAttempt(2, FINE, 7, 20, again)).then(arrived)
    given_delivery(due, once, arrived).when(RecordAttempt(3, FINE, 7, 20, again)).then()


def test_an_attempt_that_two_processes_made_is_recorded_once() -> None:
    once = attempt(1, NOON, FAILED, NOON + timedelta(seconds=5))
    given_delivery(due, once).when(RecordAttempt(1, FINE, 7, 5, NOON)).then()


def test_who_says_gone_is_asked_no_more() -> None:
    parked = WebhookParked(WAY, HOOK, "gone", 1, NOON)
    given_delivery(due).when(RecordAttempt(1, GONE, 7, 5, NOON)).then(attempt(1, NOON, GONE, None), parked)


def test_what_cannot_be_posted_is_parked_once() -> None:
    parked = WebhookParked(WAY, HOOK, "removed", 0, NOON)
    given_delivery(due).when(ParkDelivery("removed", NOON)).then(parked)
    given_delivery(due, parked).when(ParkDelivery("removed", NOON)).then()


def test_what_is_over_is_posted_again_when_its_user_asks_ten_times_at_most() -> None:
    tried = [attempt(n, NOON, FAILED, NOON) for n in range(1, 10)]
    last = (attempt(10, NOON, FAILED, None), WebhookParked(WAY, HOOK, "attempts", 10, NOON))
    asked = WebhookRedeliveryRequested(WAY, HOOK, "ada", 2, LATER, KEY)
    ask = Redeliver(HOOK, "ada", KEY, LATER)
    given_delivery(due, *tried).when(ask).then()
    given_delivery(due, *tried, *last).when(ask).then(asked)
    again = [attempt(n, LATER, FAILED, LATER) for n in range(11, 20)]
    given_delivery(due, *tried, *last, asked).when(RecordAttempt(11, FAILED, 7, 0, LATER)).then(again[0])
    given_delivery(due, *tried, *last, asked, *again[:1]).when(ask).then()
    over = (attempt(20, LATER, FAILED, None), WebhookParked(WAY, HOOK, "attempts", 20, LATER))
    given_delivery(due, *tried, *last, asked, *again).when(RecordAttempt(20, FAILED, 7, 5, LATER)).then(*over)
    given_delivery(due, *tried, *last, asked, *again, *over).when(ask).then()
    anew = WebhookRedeliveryRequested(WAY, HOOK, "ada", 3, LATER)
    given_delivery(due, *tried, *last, asked, *again, *over).when(Redeliver(HOOK, "ada", None, LATER)).then(anew)


def test_nobody_asks_for_what_went_to_others() -> None:
    for webhook_id, user_id in ((OTHER, "ada"), (HOOK, "bob")):
        given_delivery(due).when(Redeliver(webhook_id, user_id, None, LATER)).refused(NotFound, "no such")
    given_delivery().when(Redeliver(HOOK, "ada", None, LATER)).refused(NotFound, "no such")
