"""load -> decide -> append, again on conflict. The heart: every write in the system goes through `Aggregate.handle`."""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec
import structlog

from common.errors import DomainError, Unavailable
from common.event_log import Draft, EventLog, WrongSequence
from common.events import Event
from common.group_commit import BATCH_LIMIT
from common.telemetry import CONFLICTS, Cause, current_cause
from common.tracing import span, tracer

C = TypeVar("C")  # commands
S = TypeVar("S")  # state
E = TypeVar("E", bound=Event)  # events

log = structlog.get_logger()


class Decider(msgspec.Struct, Generic[C, S, E], frozen=True):
    """The rules of one kind of aggregate, pure: no I/O, no clock, no ids (Chassaing's functional decider).

    `name` is the first token of its subjects (`orders.<aggregate id>`) and, in capitals, its stream.

    `asks`: the command that leads to an event, with which what is recorded can be decided again. None for an event that
    only follows others of its decision, and for one that does not tell all that its command said.
    """

    name: str
    events: Any  # the union of its event types
    decide: Callable[[C, S], Sequence[E]]
    evolve: Callable[[S, E], S]
    initial: S
    asks: Callable[[E], Any] | None = None  # to C or None; mypy would not infer C from this and `decide`


class Loaded(msgspec.Struct, Generic[S], frozen=True):
    """An aggregate as of stream `sequence` (0: nothing yet), after `version` events, of which `last_id` was the last.

    `renewals`: of the connection to the log, when that was read.
    """

    state: S
    sequence: int = 0
    version: int = 0
    last_id: str = ""
    renewals: int = 0


class Handled(msgspec.Struct, Generic[S, E], frozen=True):
    """What a command did: its events (none for a repeat), the state after them, and how far to read to see both."""

    state: S
    events: Sequence[E]
    sequence: int
    version: int


class _Waiting(msgspec.Struct, Generic[C, S, E]):
    command: C
    cause: Cause
    new: bool
    answer: "asyncio.Future[Handled[S, E]]"


class Aggregate(Generic[C, S, E]):
    """Handles commands for all aggregates of one kind.

    An aggregate has one append in flight per process. Commands that come meanwhile wait, and are then decided together,
    each on the state that the one before it left; their events go as one atomic batch. Loaded states are kept, the
    least recently used dropped when they are more than `cache` together: events, or what `weigh` says of each state.
    After the connection to the log was renewed, each is looked at again before it is used: the log may be another.
    """

    def __init__(
        self,
        decider: Decider[C, S, E],
        event_log: EventLog,
        *,
        cache: int = 300_000,
        weigh: Callable[[S], int] | None = None,
        timeout: float = 10.0,
    ) -> None:
        """`timeout`: seconds after which a command that keeps losing the race raises Unavailable."""
        self._decider = decider
        self._log = event_log
        self._cache_limit = cache
        self._cache_size = 0
        self._weigh = weigh
        self._cache: OrderedDict[UUID, Loaded[S]] = OrderedDict()
        self._queues: dict[UUID, list[_Waiting[C, S, E]]] = {}
        self._writers: set[asyncio.Task[None]] = set()
        self._timeout = timeout
        self._conflicts = CONFLICTS.labels(decider.name)

    def subject(self, aggregate_id: UUID) -> str:
        """The one literal subject of an aggregate."""
        return f"{self._decider.name}.{aggregate_id}"

    async def handle(self, aggregate_id: UUID, command: C, *, new: bool = False) -> Handled[S, E]:
        """Decide `command` and append what it makes.

        `new`: its id was made for it, so there is nothing to read first; if there is after all, the guard says so.
        Raises what `decide` raises (a DomainError), or Unavailable when the log does not take it in time.
        """
        if tracer.get() is None:
            return await self._handled(aggregate_id, command, new)
        with span(f"handle {type(command).__name__}") as handling:  # events name it as what they are part of
            handled = await self._handled(aggregate_id, command, new)
            handling.tell("boxoffice.events", len(handled.events))
            return handled

    def _handled(self, aggregate_id: UUID, command: C, new: bool) -> "asyncio.Future[Handled[S, E]]":
        """What comes of a command, which waits for its turn from now on."""
        answer: asyncio.Future[Handled[S, E]] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(command, current_cause(), new, answer)
        if (queue := self._queues.get(aggregate_id)) is not None:
            queue.append(waiting)
        else:
            self._queues[aggregate_id] = [waiting]
            writer = asyncio.create_task(self._write(aggregate_id))
            self._writers.add(writer)
            writer.add_done_callback(self._writers.discard)
        return answer

    async def load(self, aggregate_id: UUID, *, fresh: bool = False) -> Loaded[S]:
        """The state as this process last saw it; with `fresh`, as the log has it now."""
        known, renewals = self._cache.get(aggregate_id), self._log.renewals
        renewed = known is not None and known.renewals != renewals
        if known is not None and not fresh and not renewed:
            self._cache.move_to_end(aggregate_id)
            return known
        known = known or Loaded(self._decider.initial)
        later = await self._log.read(self.subject(aggregate_id), known.sequence - 1 if renewed else known.sequence)
        if renewed and later and later[0].id == known.last_id:
            later = later[1:]
        elif renewed:  # what was known is not in this log: sequences are used again after a restore
            self._forget(aggregate_id)
            known = Loaded(self._decider.initial)
            later = await self._log.read(self.subject(aggregate_id))
        state = known.state
        for recorded in later:
            state = self._decider.evolve(state, recorded.event)  # type: ignore[arg-type]  # a subject holds one kind
        sequence, last_id = (later[-1].sequence, later[-1].id) if later else (known.sequence, known.last_id)
        loaded = Loaded(state, sequence, known.version + len(later), last_id, renewals)
        if loaded.version:
            self._remember(aggregate_id, loaded)
        return loaded

    async def _write(self, aggregate_id: UUID) -> None:
        """Serve the queue of one aggregate until it is empty."""
        queue = self._queues[aggregate_id]
        while queue:
            batch = queue[:BATCH_LIMIT]
            del queue[: len(batch)]
            try:
                await self._write_batch(aggregate_id, batch)
            except Exception as error:
                if not isinstance(error, DomainError):
                    log.exception("aggregate_failed", aggregate=self.subject(aggregate_id))
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)
        del self._queues[aggregate_id]

    async def _write_batch(self, aggregate_id: UUID, batch: Sequence[_Waiting[C, S, E]]) -> None:
        """Decide and append one batch; decide all of it again when somebody else was first."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        fresh = aggregate_id not in self._cache
        if fresh and batch[0].new:
            loaded, fresh = Loaded(self._decider.initial, renewals=self._log.renewals), False
        else:
            loaded = await self.load(aggregate_id)
        while batch:
            drafts, outcomes, after = self._decide(loaded, batch)
            if not drafts and not fresh:
                # No append will prove that this state is the newest, so a refusal might be about yesterday's.
                loaded, fresh = await self.load(aggregate_id, fresh=True), True
                continue
            if not outcomes:  # the first command alone makes more than one batch takes
                batch[0].answer.set_exception(RuntimeError(f"one command made more than {BATCH_LIMIT} events"))
                batch = batch[1:]
                continue
            if drafts:
                try:
                    sequence = await self._log.append(self.subject(aggregate_id), drafts, expected=loaded.sequence)
                except WrongSequence:
                    self._conflicts.inc()
                    if asyncio.get_running_loop().time() > deadline:
                        raise Unavailable("Too many others want the same; try again.") from None
                    await asyncio.sleep(random.uniform(0, 0.005))  # noqa: S311 (jitter)
                    loaded, fresh = await self.load(aggregate_id, fresh=True), True
                    continue
                except Exception:
                    self._forget(aggregate_id)
                    raise
                loaded = Loaded(after.state, sequence, after.version, drafts[-1].id, loaded.renewals)
                self._remember(aggregate_id, loaded)
            for waiting, outcome in zip(batch, outcomes, strict=False):
                if waiting.answer.done():
                    continue  # whoever asked is gone
                if isinstance(outcome, Exception):
                    waiting.answer.set_exception(outcome)
                else:
                    waiting.answer.set_result(msgspec.structs.replace(outcome, sequence=loaded.sequence))
            batch = batch[len(outcomes) :]

    def _decide(
        self, loaded: Loaded[S], batch: Sequence[_Waiting[C, S, E]]
    ) -> tuple[list[Draft], list[Handled[S, E] | Exception], Loaded[S]]:
        """Decide commands one after the other, as many as one append takes.

        Returns the drafts, an outcome for each command decided (a refusal counts only once the events that it was
        decided on are in the log), and where all that leaves the aggregate.
        """
        drafts: list[Draft] = []
        outcomes: list[Handled[S, E] | Exception] = []
        state, version = loaded.state, loaded.version
        for waiting in batch:
            try:
                made = self._decider.decide(waiting.command, state)
            except Exception as refusal:  # it belongs to whoever gave the command
                outcomes.append(refusal)
                continue
            if len(drafts) + len(made) > BATCH_LIMIT:
                break
            events = [msgspec.structs.replace(event, version=version + n) for n, event in enumerate(made, start=1)]
            for event in events:
                state = self._decider.evolve(state, event)
                drafts.append(Draft.of(event, waiting.cause))
            version += len(events)
            outcomes.append(Handled(state, events, loaded.sequence, version))
        return drafts, outcomes, Loaded(state, loaded.sequence, version)

    def _remember(self, aggregate_id: UUID, loaded: Loaded[S]) -> None:
        self._forget(aggregate_id)
        self._cache[aggregate_id] = loaded
        self._cache_size += self._weight(loaded)
        while self._cache_size > self._cache_limit and len(self._cache) > 1:
            self._forget(next(iter(self._cache)))

    def _forget(self, aggregate_id: UUID) -> None:
        if dropped := self._cache.pop(aggregate_id, None):
            self._cache_size -= self._weight(dropped)

    def _weight(self, loaded: Loaded[S]) -> int:
        return self._weigh(loaded.state) if self._weigh else loaded.version + 1
