"""What a webhook may become, and each notification that is posted to one."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, assert_never
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec
from msgspec import UNSET, UnsetType
from rpds import HashTrieMap

from common.aggregate import Aggregate, Decider
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

REGISTRIES = uuid5(NAMESPACE_URL, "boxoffice:webhooks")

WEBHOOKS_EACH = 10
"""Webhooks of one user at most."""

ATTEMPTS = 10
"""How often a notification is posted to a webhook that does not take it."""

LONGEST_PAUSE = 86_400.0

BOTH_SIGN = timedelta(hours=24)
"""For so long after a rotation the secret before signs too."""
BESIDES = 3
"""Secrets before the newest that sign at most. No rotation voids one before its time: it is refused until then."""

ParkReason = Literal["attempts", "gone", "disabled", "removed", "error"]
DeliveryStatus = Literal["pending", "delivered", "parked"]


def registry_id_of(user_id: str) -> UUID:
    """The id of a user's webhooks, all together."""
    return uuid5(REGISTRIES, user_id)


def delivery_id_of(webhook_id: UUID, notification_id: UUID) -> UUID:
    """The id of a notification's way to a webhook: the same however often it is asked for."""
    return uuid5(webhook_id, str(notification_id))


def pause_after(attempt: int, first: float, jitter: float) -> float:
    """Seconds from the `attempt`th of a run to the next. They grow whatever the jitter (0 to 1), up to a day."""
    return min(first * float(4 ** (attempt - 1)) * (0.75 + jitter / 4), LONGEST_PAUSE)


class Webhook(msgspec.Struct, frozen=True):
    """A webhook as its events leave it. `secret`: which one signs; None for `kinds` is all of them.

    `before`: those that sign besides, the newest first, and until when; `rotations`: which secret each request made.
    """

    id: UUID
    url: str
    kinds: Sequence[NotificationKind] | None
    created_at: datetime
    enabled: bool = True
    because: Literal["gone"] | None = None
    secret: int = 1
    before: tuple[tuple[int, datetime], ...] = ()
    rotations: "HashTrieMap[UUID, int]" = HashTrieMap()

    def wants(self, kind: NotificationKind) -> bool:
        """Whether it is told of this kind."""
        return self.enabled and (self.kinds is None or kind in self.kinds)

    def must_be_enabled(self) -> None:
        """Raises Conflict."""
        if not self.enabled:
            raise Conflict("The webhook is disabled; enable it first.")

    def secrets_at(self, moment: datetime) -> Sequence[int]:
        """The secrets that sign then, the newest first."""
        return (self.secret, *(number for number, until in self.before if moment < until))

    def both_sign_until(self, moment: datetime) -> datetime | None:
        """Until when there is more than one signature, if there is."""
        return max((until for _, until in self.before if moment < until), default=None)

    def secret_of(self, request_id: UUID | None) -> int:
        """The secret that a request made; the newest if it made none."""
        return self.secret if request_id is None else self.rotations.get(request_id, self.secret)


class Registry(msgspec.Struct, frozen=True):
    """A user's webhooks. `registered`: all there ever were, as they were then."""

    webhooks: "HashTrieMap[UUID, Webhook]" = HashTrieMap()
    registered: "HashTrieMap[UUID, Webhook]" = HashTrieMap()

    def webhook(self, webhook_id: UUID) -> Webhook:
        """One that is there. Raises NotFound."""
        if (webhook := self.webhooks.get(webhook_id)) is None:
            raise NotFound("You have no such webhook.")
        return webhook


class RegisterWebhook(msgspec.Struct, frozen=True):
    """Post a user's notifications to `url` from now on. The same again is a repeat."""

    webhook_id: UUID
    user_id: str
    url: str
    kinds: list[NotificationKind] | None
    at: datetime


class ChangeWebhook(msgspec.Struct, frozen=True):
    """What is UNSET stays as it is."""

    webhook_id: UUID
    user_id: str
    url: str | UnsetType
    kinds: list[NotificationKind] | UnsetType | None
    enabled: bool | UnsetType
    at: datetime


class DisableGone(msgspec.Struct, frozen=True):
    """It answered 410 at `url`: whoever was there does not want to be asked again."""

    webhook_id: UUID
    user_id: str
    url: str
    at: datetime


class RotateSecret(msgspec.Struct, frozen=True):
    """Sign with a new secret. The same `request_id` again is a repeat."""

    webhook_id: UUID
    user_id: str
    request_id: UUID | None
    at: datetime


class RemoveWebhook(msgspec.Struct, frozen=True):
    webhook_id: UUID
    user_id: str
    at: datetime


WebhookCommand = RegisterWebhook | ChangeWebhook | DisableGone | RotateSecret | RemoveWebhook


def decide(command: WebhookCommand, registry: Registry) -> list[WebhookEvent]:
    match command:
        case RegisterWebhook(webhook_id, user_id, url, kinds, at):
            if (before := registry.registered.get(webhook_id)) is not None:
                if (url, kinds) != (before.url, before.kinds):
                    raise Invalid("Idempotency-Key: Used for another webhook; take a new one", field="Idempotency-Key")
                if webhook_id not in registry.webhooks:
                    raise Conflict("The webhook of this Idempotency-Key was removed; take a new key.")
                return []
            if len(registry.webhooks) >= WEBHOOKS_EACH:
                raise Conflict(f"You have {WEBHOOKS_EACH} webhooks, which is all that you may; remove one first.")
            return [WebhookRegistered(webhook_id, user_id, url, kinds, at)]
        case ChangeWebhook():
            return changed(command, registry.webhook(command.webhook_id))
        case DisableGone(webhook_id, user_id, url, at):
            webhook = registry.webhooks.get(webhook_id)
            if webhook is None or not webhook.enabled or webhook.url != url:
                return []
            return [WebhookChanged(webhook_id, user_id, url, listed(webhook.kinds), False, at, "gone")]
        case RotateSecret(webhook_id, user_id, request_id, at):
            webhook = registry.webhook(webhook_id)
            if request_id is not None and request_id in webhook.rotations:
                return []
            if len(besides := [until for _, until in webhook.before if at < until]) >= BESIDES:
                again = f"{min(besides):%H:%M:%S} UTC on {min(besides).day} {min(besides):%B %Y}"
                raise Conflict(f"{BESIDES} secrets before this one still sign; rotate again from {again}.")
            return [WebhookSecretRotated(webhook_id, user_id, webhook.secret + 1, at, request_id)]
        case RemoveWebhook(webhook_id, user_id, at):
            if webhook_id in registry.registered and webhook_id not in registry.webhooks:
                return []  # it is gone already
            registry.webhook(webhook_id)
            return [WebhookRemoved(webhook_id, user_id, at)]
        case _:
            assert_never(command)


def changed(command: ChangeWebhook, webhook: Webhook) -> list[WebhookEvent]:
    url = webhook.url if command.url is UNSET else command.url
    kinds = listed(webhook.kinds) if command.kinds is UNSET else command.kinds
    enabled = webhook.enabled if command.enabled is UNSET else command.enabled
    if (url, kinds, enabled) == (webhook.url, webhook.kinds, webhook.enabled):
        return []
    because = webhook.because if not enabled and command.enabled is UNSET else None
    return [WebhookChanged(command.webhook_id, command.user_id, url, kinds, enabled, command.at, because)]


def listed(kinds: Sequence[NotificationKind] | None) -> list[NotificationKind] | None:
    return None if kinds is None else list(kinds)


def evolve(registry: Registry, event: WebhookEvent) -> Registry:
    webhooks = registry.webhooks
    now: dict[str, object]
    match event:
        case WebhookRegistered(webhook_id, _, url, kinds, at):
            webhook = Webhook(webhook_id, url, kinds, at)
            return Registry(webhooks.insert(webhook_id, webhook), registry.registered.insert(webhook_id, webhook))
        case WebhookChanged(webhook_id, _, url, kinds, enabled, _, because):
            now = {"url": url, "kinds": kinds, "enabled": enabled, "because": because}
        case WebhookSecretRotated(webhook_id, _, secret, at, request_id):
            webhook = webhooks[webhook_id]
            made = webhook.rotations.insert(request_id, secret) if request_id else webhook.rotations
            before = ((webhook.secret, at + BOTH_SIGN), *webhook.before)[:BESIDES]
            now = {"secret": secret, "before": before, "rotations": made}
        case WebhookRemoved(webhook_id):
            return Registry(webhooks.remove(webhook_id), registry.registered)
        case _:
            assert_never(event)
    webhook = msgspec.structs.replace(webhooks[webhook_id], **now)
    return Registry(webhooks.insert(webhook_id, webhook), registry.registered)


def asks(event: WebhookEvent) -> WebhookCommand | None:
    """The command that leads to an event."""
    match event:
        case WebhookRegistered(webhook_id, user_id, url, kinds, at):
            return RegisterWebhook(webhook_id, user_id, url, kinds, at)
        case WebhookChanged(webhook_id, user_id, url, kinds, enabled, at, because):
            if because is not None:
                return None  # it answered 410, or was changed when it had
            return ChangeWebhook(webhook_id, user_id, url, kinds, enabled, at)
        case WebhookSecretRotated(webhook_id, user_id, _, at, request_id):
            return RotateSecret(webhook_id, user_id, request_id, at)
        case WebhookRemoved(webhook_id, user_id, at):
            return RemoveWebhook(webhook_id, user_id, at)
        case _:
            assert_never(event)


WEBHOOKS = Decider("notifications.webhooks", WebhookEvent, decide, evolve, initial=Registry(), asks=asks)
"""Its subjects are apart from those of inboxes, so that who listens to one does not hear the other."""
Webhooks = Aggregate[WebhookCommand, Registry, WebhookEvent]


class Answer(msgspec.Struct, frozen=True):
    """How a post ended. `error`: in words, None if it arrived; `retry_after`: seconds that the other side asked for."""

    status: int | None
    error: str | None
    retry_after: float = 0

    @property
    def gone(self) -> bool:
        """Whether it asks for no more."""
        return self.status == 410


class Delivery(msgspec.Struct, frozen=True):
    """A notification's way to a webhook. `run`: of attempts, the last one; before it there were `tried_before`."""

    id: UUID | None = None
    webhook_id: UUID | None = None
    user_id: str = ""
    kind: str = ""
    body: str = ""
    status: DeliveryStatus = "pending"
    run: int = 0
    attempts: int = 0
    tried_before: int = 0
    again_at: datetime | None = None
    requests: frozenset[UUID] = frozenset()

    @property
    def is_over(self) -> bool:
        return self.status != "pending"

    @property
    def tries(self) -> int:
        """Attempts of this run."""
        return self.attempts - self.tried_before


class SendNotification(msgspec.Struct, frozen=True):
    """Post a notification to a webhook. The same again is a repeat."""

    delivery_id: UUID
    webhook_id: UUID
    user_id: str
    notification_id: UUID
    kind: NotificationKind
    body: str
    at: datetime


class RecordAttempt(msgspec.Struct, frozen=True):
    """It was posted for the `attempt`th time. If it is to be tried again, then after `pause` seconds."""

    attempt: int
    answer: Answer
    milliseconds: int
    pause: float
    at: datetime


class ParkDelivery(msgspec.Struct, frozen=True):
    """Try no more."""

    reason: ParkReason
    at: datetime


class Redeliver(msgspec.Struct, frozen=True):
    """Post it once more, as if it were new. While it is under way, or with the same `request_id`, it is a repeat."""

    webhook_id: UUID
    user_id: str
    request_id: UUID | None
    at: datetime


DeliveryCommand = SendNotification | RecordAttempt | ParkDelivery | Redeliver


def decide_delivery(command: DeliveryCommand, delivery: Delivery) -> list[WebhookDeliveryEvent]:
    match command:
        case SendNotification():
            return [WebhookDue(*msgspec.structs.astuple(command))] if delivery.id is None else []
        case RecordAttempt():
            if delivery.is_over or command.attempt != delivery.attempts + 1:
                return []  # another process was quicker
            return attempted(command, delivery)
        case ParkDelivery(reason, at):
            return [] if delivery.is_over else [parked(delivery, reason, delivery.attempts, at)]
        case Redeliver(webhook_id, user_id, request_id, at):
            if delivery.id is None or (delivery.webhook_id, delivery.user_id) != (webhook_id, user_id):
                raise NotFound("There is no such delivery to this webhook.")
            if not delivery.is_over or request_id in delivery.requests:
                return []
            return [
                WebhookRedeliveryRequested(delivery.id, webhook_id, user_id, delivery.run + 1, at, request_id),
            ]
        case _:
            assert_never(command)


def attempted(command: RecordAttempt, delivery: Delivery) -> list[WebhookDeliveryEvent]:
    """That it arrived, or did not and what follows from that."""
    assert delivery.id
    assert delivery.webhook_id
    answer, ids, number, took = (
        command.answer,
        (delivery.id, delivery.webhook_id),
        command.attempt,
        command.milliseconds,
    )
    if answer.error is None:
        assert answer.status, "it was answered"
        return [WebhookDelivered(*ids, number, answer.status, took, command.at)]
    last = answer.gone or delivery.tries + 1 >= ATTEMPTS
    again_at = None if last else command.at + timedelta(seconds=command.pause)
    attempt = WebhookAttempted(*ids, number, answer.status, answer.error, took, command.at, again_at)
    return [attempt, parked(delivery, "gone" if answer.gone else "attempts", number, command.at)] if last else [attempt]


def parked(delivery: Delivery, reason: ParkReason, attempts: int, at: datetime) -> WebhookParked:
    assert delivery.id
    assert delivery.webhook_id
    return WebhookParked(delivery.id, delivery.webhook_id, reason, attempts, at)


def evolve_delivery(delivery: Delivery, event: WebhookDeliveryEvent) -> Delivery:
    match event:
        case WebhookDue(delivery_id, webhook_id, user_id, _, kind, body):
            return Delivery(delivery_id, webhook_id, user_id, kind, body, run=1)
        case WebhookAttempted(attempt=attempt, again_at=again_at):
            return msgspec.structs.replace(delivery, attempts=attempt, again_at=again_at)
        case WebhookDelivered(attempt=attempt):
            return msgspec.structs.replace(delivery, status="delivered", attempts=attempt, again_at=None)
        case WebhookParked():
            return msgspec.structs.replace(delivery, status="parked", again_at=None)
        case WebhookRedeliveryRequested(run=run, request_id=request_id):
            requests = delivery.requests | ({request_id} if request_id else set())
            tried = delivery.attempts
            return msgspec.structs.replace(delivery, status="pending", run=run, tried_before=tried, requests=requests)
        case _:
            assert_never(event)


def asks_of_delivery(event: WebhookDeliveryEvent) -> DeliveryCommand | None:
    """The command that leads to an event."""
    match event:
        case WebhookDue():
            told = (event.delivery_id, event.webhook_id, event.user_id, event.notification_id, event.kind)
            return SendNotification(*told, event.body, event.at)
        case WebhookAttempted(_, _, attempt, status, error, took, at, again_at):
            pause = (again_at - at).total_seconds() if again_at else 0
            return RecordAttempt(attempt, Answer(status, error), took, pause, at)
        case WebhookDelivered(_, _, attempt, status, took, at):
            return RecordAttempt(attempt, Answer(status, None), took, 0, at)
        case WebhookParked(reason=reason, at=at):
            if reason in ("attempts", "gone"):
                return None  # it comes with the last attempt
            return ParkDelivery(reason, at)
        case WebhookRedeliveryRequested(_, webhook_id, user_id, _, at, request_id):
            return Redeliver(webhook_id, user_id, request_id, at)
        case _:
            assert_never(event)


DELIVERIES = Decider(
    "notifications.deliveries", WebhookDeliveryEvent, decide_delivery, evolve_delivery, Delivery(), asks_of_delivery
)
"""Apart from inboxes and webhooks, so that who posts them hears nothing else."""
Deliveries = Aggregate[DeliveryCommand, Delivery, WebhookDeliveryEvent]
