"""JetStream as the clock: an event with a deadline is put back until shortly before it, then held to the moment."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from uuid import UUID

from common.clock import now
from common.errors import Retry, Unavailable
from common.event_log import EventLog
from common.events import Event, ExpirationCompleted, OrderCancelled, OrderCompleted, OrderCreated
from common.listener import Listener
from common.publisher import Publisher
from common.telemetry import LATENESS

LEAD = 4.0
"""Seconds before its deadline at which an event is held in process. Redelivery may be late by so much and harm nothing;
shorter than the consumer's ack_wait, so that a hold is normally one delivery."""

OVERDUE = 60.0
"""Seconds past its deadline after which an order that comes was with nobody: the durable consumer was made anew, and
tells all of history again. What ended is read again then, since it may have been forgotten."""

REMEMBERED = 1_000_000
"""Ended orders that are remembered at most. A forgotten one costs an ExpirationCompleted that nobody needs."""


class HoldOrder(Listener[OrderCreated]):
    """Tells when the time of an order is over, unless the order ended before.

    It keeps nothing that a restart would lose: what is left to wait is computed from the event at every delivery.
    """

    durable = "expiration-hold-orders"
    concurrency = 50_000  # they only wait
    patience = 0  # and may be waited for elsewhere
    waits = True

    def __init__(self, publisher: Publisher[ExpirationCompleted]) -> None:
        self.publisher = publisher
        self.holds: dict[UUID, asyncio.Future[bool]] = {}
        self.ended: dict[UUID, None] = {}
        self.readings = 0  # of what ended; how many were begun
        self.read = 0  # the last that came to where the log ended when it began
        self.doubts = asyncio.Event()
        self.progress = asyncio.Condition()

    def key(self, event: OrderCreated) -> object:
        """Orders wait side by side, also those for one ticket."""
        return event.order_id

    async def on(self, event: OrderCreated) -> None:
        if (left := seconds_to(event)) > LEAD:
            raise Retry(left - LEAD)
        if left > -OVERDUE or event.order_id in self.ended:
            await self.informed(1, at_most=5)
        else:
            self.doubts.set()
            await self.informed(self.readings + 1, at_most=60)
        if event.order_id in self.ended:
            del self.ended[event.order_id]
            return
        while (left := seconds_to(event)) > 0:  # again, should the clock be set back
            if await self.ends_within(left, event.order_id):
                return
        await self.tell(event)

    async def informed(self, reading: int, *, at_most: float) -> None:
        """Wait until this reading of what ended is done, `at_most` seconds: better a needless expiry than none."""
        if self.read < reading:
            with suppress(TimeoutError):
                async with asyncio.timeout(at_most), self.progress:
                    await self.progress.wait_for(lambda: self.read >= reading)

    async def ends_within(self, seconds: float, order_id: UUID) -> bool:
        """Hold an order for `seconds`; whether it ended meanwhile."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[bool] = loop.create_future()
        self.holds[order_id] = ended
        timer = loop.call_later(seconds, resolve, ended, False)
        try:
            return await ended
        finally:
            timer.cancel()
            del self.holds[order_id]

    async def tell(self, event: OrderCreated) -> None:
        """Publish that the time is over."""
        at = now()
        told = ExpirationCompleted(event.order_id, event.ticket_id, event.expires_at, at)
        await self.publisher.publish(event.order_id, told)
        LATENESS.observe((at - event.expires_at).total_seconds())

    def hear(self, event: Event) -> None:
        """Withdraw the hold of an order that ended."""
        match event:
            case OrderCancelled(reason="expired"):
                pass  # its hold is over
            case OrderCompleted(order_id) | OrderCancelled(order_id):
                self.withdraw(order_id)

    def withdraw(self, order_id: UUID) -> None:
        """Let go of an order that ended."""
        if (hold := self.holds.get(order_id)) is not None:
            resolve(hold, True)
            return
        self.ended[order_id] = None
        if len(self.ended) > REMEMBERED:
            del self.ended[next(iter(self.ended))]


class Withdrawals:
    """Follows the orders that end, on every replica, and withdraws their holds.

    What ended before this process started is read from where the oldest hold is; again, when the holder is in doubt.
    """

    name = "expiration.withdrawals"

    def __init__(self, holder: HoldOrder, event_log: EventLog, oldest_hold: Callable[[], Awaitable[int]]) -> None:
        """`oldest_hold` tells the sequence before which no order is held any more."""
        self.problem: str | None = None
        self._holder = holder
        self._log = event_log
        self._oldest_hold = oldest_hold

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            following = asyncio.create_task(self._follow())
            doubting = asyncio.create_task(self._doubted())
            try:
                await asyncio.wait({following, doubting}, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    await following
            except Unavailable as error:
                self.problem = error.detail
                self._holder.ended.clear()  # in a log that was restored they may not have ended; what did is read again
                await asyncio.sleep(1)
            finally:
                following.cancel()
                doubting.cancel()

    async def _doubted(self) -> None:
        """Wait until the holder is in doubt, and not before the reading under way is done."""
        await self._holder.doubts.wait()
        async with self._holder.progress:
            await self._holder.progress.wait_for(lambda: self._holder.read == self._holder.readings)

    async def _follow(self) -> None:
        holder = self._holder
        holder.doubts.clear()
        holder.readings += 1
        start = await self._oldest_hold()
        end = (await self._log.end("ORDERS")).sequence
        self.problem = None
        if start >= end:
            await self._done()
        async with aclosing(self._log.follow("ORDERS", start)) as batches:
            async for batch in batches:
                for recorded in batch:
                    holder.hear(recorded.event)
                if holder.read < holder.readings and batch[-1].sequence >= end:
                    await self._done()

    async def _done(self) -> None:
        """This reading has come to where the log ended when it began."""
        async with self._holder.progress:
            self._holder.read = self._holder.readings
            self._holder.progress.notify_all()


def resolve(hold: asyncio.Future[bool], ended: bool) -> None:
    """Let go of a hold: its order ended, or its time has come."""
    if not hold.done():
        hold.set_result(ended)


def seconds_to(event: OrderCreated) -> float:
    """Seconds that are left until the deadline of an order; negative when it is past."""
    return (event.expires_at - now()).total_seconds()
