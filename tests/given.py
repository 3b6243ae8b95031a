"""Rules as sentences: given what happened, when a command comes, then these facts follow, or it is refused."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec
import pytest

from common.aggregate import Decider
from common.errors import DomainError
from common.events import Event

C = TypeVar("C")
S = TypeVar("S")
E = TypeVar("E", bound=Event)


def recorded(events: Sequence[E], after: int = 0) -> list[E]:
    """The events with the versions that the log would give them."""
    return [msgspec.structs.replace(event, version=version) for version, event in enumerate(events, after + 1)]


def fold(decider: Decider[Any, S, E], events: Sequence[E]) -> S:
    """The state that the events leave."""
    state = decider.initial
    for event in events:
        state = decider.evolve(state, event)
    return state


class When(Generic[C, S, E]):
    """A command on a state, still to be decided."""

    def __init__(self, decider: Decider[C, S, E], state: S, command: C) -> None:
        self._decider = decider
        self._state = state
        self._command = command

    def then(self, *facts: E) -> None:
        """These facts follow, and no others."""
        assert list(self._decider.decide(self._command, self._state)) == list(facts)

    def refused(self, kind: type[DomainError], says: str = "", **context: object) -> None:
        """It is refused in this way; the message matches `says`, the context is exactly this."""
        with pytest.raises(kind, match=says) as refusal:
            self._decider.decide(self._command, self._state)
        assert refusal.type is kind
        assert refusal.value.context == context


class Given(Generic[C, S, E]):
    """What happened so far."""

    def __init__(self, decider: Decider[C, S, E], *events: E) -> None:
        self._decider = decider
        self.state = fold(decider, recorded(events))

    def when(self, command: C) -> When[C, S, E]:
        """A command comes."""
        return When(self._decider, self.state, command)
