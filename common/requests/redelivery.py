"""What every service that listens can be asked: that one of its listeners hears an event once more."""

import asyncio
from collections.abc import Sequence

import msgspec
import structlog

from common.errors import NotFound, Unavailable
from common.listener import Subscription
from common.requests import Answering, Endpoint
from common.topology import CONSUMER, REDELIVER

DONE_WITHIN = 10.0
"""Seconds that a listener is given; one that waits may take longer, and then nobody knows what became of it."""

ANSWERED_WITHIN = 15.0
"""Seconds that whoever asks waits for the answer."""

ERROR = 2000
"""Characters of an error at most, as in a dead letter."""

log = structlog.get_logger()


class Redelivery(msgspec.Struct, frozen=True):
    """An event as a stream has it, or had it, and the listener (by its durable consumer) that is to hear it."""

    listener: str
    stream: str
    subject: str
    sequence: int
    headers: dict[str, str]
    body: bytes


class Redelivered(msgspec.Struct, frozen=True):
    """That the listener heard it. `error`: why it failed; None says that the deed is done."""

    error: str | None = None


def endpoint_of(service: str) -> Endpoint[Redelivery, Redelivered]:
    """Where a service is asked. Raises Invalid for what the listener would not hear, and Unavailable.

    After the latter nobody knows whether it was heard.
    """
    return Endpoint(service, REDELIVER, Redelivery, Redelivered)


def service_of(listener: str) -> str:
    """Whose listener that is. Raises NotFound."""
    if listener not in CONSUMER:
        raise NotFound(f"listener: There is none of that name; there are {', '.join(CONSUMER)}", field="listener")
    return CONSUMER[listener].service


def answering(service: str, subscriptions: Sequence[Subscription]) -> Answering[Redelivery, Redelivered]:
    """How a service answers that has these listeners."""
    listening = {subscription.name: subscription for subscription in subscriptions}

    async def redeliver(asked: Redelivery) -> Redelivered:
        """Have the event heard, after those of its aggregate that are being heard now."""
        if (subscription := listening.get(asked.listener)) is None:
            raise Unavailable(f"{asked.listener} does not run in this process of {service}.")
        event = subscription.understood(asked.stream, asked.subject, asked.headers, asked.body)
        error: str | None = None
        bound = asyncio.timeout(DONE_WITHIN)
        try:
            async with bound:
                await subscription.redeliver(asked.subject, asked.headers, event)
        except Exception as failed:
            if bound.expired():
                raise Unavailable(f"{asked.listener} was not done with it after {DONE_WITHIN:.0f} s.") from failed
            error = f"{type(failed).__name__}: {failed}"[:ERROR]
        log.info("redelivered", listener=asked.listener, subject=asked.subject, sequence=asked.sequence, error=error)
        return Redelivered(error)

    return Answering(endpoint_of(service), redeliver)
