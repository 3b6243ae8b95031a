"""An index of the dead letters, in memory: which there are, why, and how each stands. Their bodies stay in the log."""

import asyncio
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import aclosing, suppress
from datetime import datetime

import msgspec

from common.errors import NotFound, Unavailable
from common.event_log import JetStreamLog, Stored
from services.history.domain import REPAIRS, Repair, Standing, letter_id_of

DEAD = "DEAD"
ACTIONS = "REPAIRS"
"""The stream of what operators did."""

PATIENCE = 2.0
"""Seconds that whoever changed something waits at most until it can be read."""

AN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Letter(msgspec.Struct, frozen=True):
    """A dead letter: which event, by its place in its own stream, who gave up on it, and why. `number` is its in DEAD.

    `kind`: the error with a * in place of every id, by which letters are of one group.
    """

    number: int
    listener: str
    error: str
    kind: str
    attempts: int
    stream: str
    sequence: int
    subject: str
    type: str
    event_id: str
    correlation_id: str
    appended_at: datetime
    died_at: datetime

    @classmethod
    def of(cls, stored: Stored) -> "Letter":
        """What the headers of a dead letter say, as far as they do."""
        told = stored.headers
        appended_at = stored.stored_at
        with suppress(ValueError):  # who wrote what cannot be decoded may have written anything
            appended_at = stored.time
        error = told.get("dead-error", "")
        return cls(
            stored.sequence,
            sys.intern(told.get("dead-listener", stored.subject.partition(".")[2])),
            sys.intern(error),
            sys.intern(AN_ID.sub("*", error)),
            number_in(told, "dead-attempts"),
            sys.intern(told.get("dead-stream", "")),
            number_in(told, "dead-sequence"),
            told.get("dead-subject", ""),
            sys.intern(stored.type),
            told.get("ce-id", ""),
            told.get("correlation-id", ""),
            appended_at,
            stored.stored_at,
        )


class Wanted(msgspec.Struct, frozen=True):
    """Which dead letters are asked for: all, or those of a listener, with an error that holds this, that stand so."""

    listener: str | None = None
    error: str | None = None
    standing: Standing | None = None

    def fits(self, letter: Letter, repair: Repair) -> bool:
        return (
            (self.listener is None or letter.listener == self.listener)
            and (self.error is None or self.error in letter.error or self.error in letter.kind)
            and (self.standing is None or repair.standing == self.standing)
        )


class Letters:
    """Follows what is given up on and what is done about it. A worker.

    When the stream of dead letters is another one than before, it begins anew.
    """

    name = "history.letters"

    def __init__(self, event_log: JetStreamLog) -> None:
        self.problem: str | None = "starting"
        self.log = ""
        """Which stream of dead letters this is about."""
        self._event_log = event_log
        self._letters: dict[int, Letter] = {}
        self._repairs: dict[int, Repair] = {}
        self._read: dict[str, int] = {}
        self._goal: dict[str, int] = {}
        self._open: tuple[dict[str, int], dict[str, int]] = ({}, {})  # what was read, and how many were open then
        self._progress = asyncio.Condition()

    async def run(self) -> None:
        """Follow until cancelled. Raises Unavailable when a stream was replaced."""
        dead, actions = await self._event_log.end(DEAD), await self._event_log.end(ACTIONS)
        self.problem, self.log = "the dead letters are being read", dead.log
        self._letters, self._repairs, self._open = {}, {}, ({}, {})
        self._read, self._goal = {DEAD: 0, ACTIONS: 0}, {DEAD: dead.sequence, ACTIONS: actions.sequence}
        await self._pass(DEAD, 0)
        following = [asyncio.create_task(self._follow_letters()), asyncio.create_task(self._follow_actions())]
        try:
            await asyncio.gather(*following)
        finally:
            for task in following:
                task.cancel()
            await asyncio.wait(following)

    async def _follow_letters(self) -> None:
        async with aclosing(self._event_log.tail(DEAD)) as pages:
            async for page in pages:
                if (await self._event_log.end(DEAD)).log != self.log:
                    raise Unavailable(f"Stream {DEAD} was replaced.")
                self._letters |= {stored.sequence: Letter.of(stored) for stored in page}
                await self._pass(DEAD, page[-1].sequence)

    async def _follow_actions(self) -> None:
        async with aclosing(self._event_log.follow(ACTIONS)) as batches:
            async for batch in batches:
                for recorded in batch:
                    number = getattr(recorded.event, "letter", None)
                    if number is not None and recorded.subject == f"repairs.{letter_id_of(self.log, number)}":
                        self._repairs[number] = REPAIRS.evolve(self.repair(number), recorded.event)  # type: ignore[arg-type]  # the stream holds no others
                await self._pass(ACTIONS, batch[-1].sequence)

    async def _pass(self, stream: str, sequence: int) -> None:
        async with self._progress:
            self._read[stream] = sequence
            if all(self._read[each] >= goal for each, goal in self._goal.items()):
                self.problem = None
            self._progress.notify_all()

    async def passed(self, sequence: int) -> None:
        """Wait until what was done up to this sequence of REPAIRS can be read; 2 s at most, as it is done even then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE), self._progress:
                await self._progress.wait_for(lambda: self._read.get(ACTIONS, 0) >= sequence)

    def repair(self, number: int) -> Repair:
        """What was done about a letter so far."""
        return self._repairs.get(number, REPAIRS.initial)

    def find(self, number: int) -> Letter:
        """Raises NotFound, Unavailable."""
        self._require_ready()
        if number not in self._letters:
            raise NotFound(f"There is no dead letter {number}.")
        return self._letters[number]

    def newest_first(self, wanted: Wanted, before: int | None = None) -> Iterator[Letter]:
        """Those that fit, with a number less than `before`. Raises Unavailable."""
        self._require_ready()
        for number in reversed(self._letters):
            letter = self._letters[number]
            if (before is None or number < before) and wanted.fits(letter, self.repair(number)):
                yield letter

    def open_by_listener(self) -> Mapping[str, int] | None:
        """How many are open, by who gave up on them; counted anew when there is news. None: it is not known."""
        if self.problem:
            return None
        if self._open[0] != self._read:
            listeners = (letter.listener for letter in self.newest_first(Wanted(standing="open")))
            self._open = (dict(self._read), Counter(listeners))
        return self._open[1]

    def _require_ready(self) -> None:
        if self.problem:
            raise Unavailable(f"The dead letters cannot be told now: {self.problem}.")


def number_in(headers: Mapping[str, str], name: str) -> int:
    """The number that a header holds; 0 where it holds none."""
    text = headers.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0
