"""An aggregate's history: the state after each event, and what the event changed of it."""

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from datetime import datetime
from itertools import islice
from typing import Any, get_args
from uuid import UUID

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from rpds import HashTrieMap, HashTrieSet

from common.aggregate import Decider
from common.errors import Invalid, Unavailable
from common.event_log import Recorded
from common.events import Event, encode, type_of
from services.history.finding import quoted

WHO = ("by", "buyer_id", "seller_id", "user_id")
"""The fields in which events name a person, whoever did it first."""


SHOWN = 1_000
"""Steps that are shown unless somebody wants more: each is compared with the one before."""


class Change(Struct, frozen=True, omit_defaults=True):
    """What an event did to a part of the state: without `before` it is new, without `after` gone.

    `path` is dotted, and empty for a state that is one value; of a set it ends in [], and the part is one member.
    """

    path: str
    before: Any | UnsetType = UNSET
    after: Any | UnsetType = UNSET


class Step(Struct, frozen=True):
    """An event of a history. `waited`: seconds since the step before; `who`: the person that it names, if it does.

    `state`: the one after it, as the rules have it, if it was asked for; `plain` makes JSON of it.
    """

    sequence: int
    version: int
    type: str
    time: datetime
    waited: float | None
    who: str | None
    event_id: str
    correlation_id: str
    causation_id: str
    event: Any
    changes: Sequence[Change]
    state: Any | UnsetType = UNSET


class History(Struct, frozen=True):
    """An aggregate as its events tell it. `state` is the one after the last of `steps`; `earlier` come before them.

    `left_out`: how many entries of a part of the state are not in it, by its name.
    """

    subject: str
    earlier: int
    steps: Sequence[Step]
    state: Any
    left_out: Mapping[str, int] = {}


def decider_of(deciders: Sequence[Decider[Any, Any, Any]], subject: str, event: Event) -> Decider[Any, Any, Any] | None:
    """The rules of an aggregate, by its subject and its first event; None for a fact that is alone on its subject."""
    name = subject.rpartition(".")[0]
    for decider in deciders:
        if decider.name == name and type(event) in (get_args(decider.events) or (decider.events,)):
            return decider
    return None


def history_of(
    deciders: Sequence[Decider[Any, Any, Any]],
    events: Sequence[Recorded],
    *,
    at: int | datetime | None = None,
    about: str = "",
    last: int = SHOWN,
    whole: bool = False,
    entries: int | None = None,
) -> History:
    """The history of one aggregate, from its first event on, up to a sequence or a time, `at`: the `last` steps of it.

    `about`: only the steps of events that name this id, of the many that an aggregate may hold; the state is that of
    the whole aggregate all the same. `whole`: each step has its state, too; they share what they have in common.
    `entries`: so many of each part of the state at most, those that the id or the last step names first.
    Raises Invalid when the moment is before the first event, or the first that names the id, Unavailable.
    """
    first, naming_it = events[0], naming(events, about)
    events = [recorded for recorded in events if not is_after(recorded, at)]
    if not events:
        detail = f"at: {first.subject} begins at sequence {first.sequence}, {first.time.isoformat()}."
        raise Invalid(detail, field="at", begins=first.time.isoformat())
    named = [recorded for recorded in naming_it if not is_after(recorded, at)]
    if not named:
        first = naming_it[0]
        named_at = f"sequence {first.sequence}, {first.time.isoformat()}"
        detail = f"at: {about} is named in {first.subject} from {named_at} on."
        raise Invalid(detail, field="at", begins=first.time.isoformat())
    shown = {recorded.sequence for recorded in named[-last:]}
    decider = decider_of(deciders, first.subject, first.event)
    state = decider.initial if decider else None
    steps: list[Step] = []
    for recorded in events:
        before, state = state, folded(decider, state, recorded) if decider else recorded.event
        if recorded.sequence in shown:
            differing = list(changes(before, state, named_in(recorded.event)))
            step = step_of(recorded, steps[-1].time if steps else None, differing)
            steps.append(msgspec.structs.replace(step, state=state) if whole else step)
    likely = named_in(named[-1].event) | ({UUID(about)} if about else set())
    state, left_out = (state, {}) if entries is None else abridged(state, entries, likely)
    return History(first.subject, len(named) - len(steps), steps, plain(state), left_out)


def abridged(state: Any, most: int, likely: Collection[Any]) -> tuple[Any, dict[str, int]]:
    """A state with at most so many entries in each of its mappings and sets, the `likely` first; and how many of each
    are left out, by its name.
    """
    kept: dict[str, Any] = {}
    left_out: dict[str, int] = {}
    for name in state.__struct_fields__ if isinstance(state, Struct) else ():
        part = getattr(state, name)
        if not isinstance(part, Mapping | HashTrieMap | Set | HashTrieSet) or len(part) <= most:
            continue
        kinds = {type(key) for key in islice(part, 1)}
        first = [key for key in likely if type(key) in kinds and key in part]
        keys = list(islice(dict.fromkeys((*first, *islice(part, most))), most))
        kept[name] = {key: part[key] for key in keys} if isinstance(part, Mapping | HashTrieMap) else set(keys)
        left_out[name] = len(part) - most
    return (msgspec.structs.replace(state, **kept) if kept else state), left_out


def naming(events: Sequence[Recorded], about: str) -> Sequence[Recorded]:
    """The events that name an id; all of them for none."""
    return [recorded for recorded in events if not about or quoted(about) in encode(recorded.event)]


def folded(decider: Decider[Any, Any, Any], state: Any, recorded: Recorded) -> Any:
    """The state after one more event. Raises Unavailable for one that these rules cannot follow."""
    try:
        return decider.evolve(state, recorded.event)
    except Exception as error:
        what = f"event {recorded.sequence} of {recorded.subject} does not follow from those before it"
        raise Unavailable(f"By the rules of this code {what}: {type(error).__name__}: {error}") from error


def is_after(recorded: Recorded, at: int | datetime | None) -> bool:
    """Whether an event is past a moment."""
    if at is None:
        return False
    return recorded.sequence > at if isinstance(at, int) else recorded.time > at


def step_of(recorded: Recorded, last: datetime | None, changes: Sequence[Change]) -> Step:
    """What is shown of an event; `last`: the time of the step before it."""
    event = recorded.event
    return Step(
        recorded.sequence,
        event.version,
        type_of(type(event)),
        recorded.time,
        (recorded.time - last).total_seconds() if last else None,
        who_of(event),
        recorded.id,
        recorded.cause.correlation_id,
        recorded.cause.causation_id,
        plain(event),
        changes,
    )


def who_of(event: Event) -> str | None:
    """The person that an event names."""
    return next((who for name in WHO if isinstance(who := getattr(event, name, None), str)), None)


def changes(before: Any, after: Any, likely: Collection[Any] = (), path: str = "") -> Iterator[Change]:
    """Each part that differs between two states. Mappings and structs are gone into, all else is taken as a whole.

    `likely`: keys of mappings to look at first. Where nothing else differs, a persistent map of thousands is compared
    at once, and not gone through: that costs rpds 0.8 us for each entry.
    """
    if before is after:
        return
    if isinstance(after, Struct) and type(before) is type(after):
        for name in after.__struct_fields__:
            yield from changes(getattr(before, name), getattr(after, name), likely, join(path, name))
    elif isinstance(after, Mapping | HashTrieMap) and isinstance(before, Mapping | HashTrieMap):
        yield from entries(before, after, likely, path)
    elif isinstance(after, Set | HashTrieSet) and isinstance(before, Set | HashTrieSet):
        members = f"{path}[]"
        yield from (Change(members, before=plain(each)) for each in sorted(before, key=str) if each not in after)
        yield from (Change(members, after=plain(each)) for each in sorted(after, key=str) if each not in before)
    elif before is None and not path and isinstance(after, Struct):
        yield from (Change(name, after=part) for name, part in plain(after).items())
    elif before != after:
        yield Change(path, plain(before), plain(after))


def entries(before: Any, after: Any, likely: Collection[Any], path: str) -> Iterator[Change]:
    """Each entry that differs between two mappings."""
    kinds = {type(key) for some in (before, after) for key in islice(some, 1)}
    # Of another type it is none of the keys; and rpds panics over keys of two types with one hash.
    first = [key for key in likely if type(key) in kinds and (key in before or key in after)]
    yield from (change for key in first for change in entry(before, after, key, likely, path))
    if isinstance(before, HashTrieMap) and isinstance(after, HashTrieMap):
        for key in first:
            before, after = before.discard(key), after.discard(key)
        if before == after:
            return
    others = [*(key for key in before if key not in after), *after]
    for key in others:
        if key not in first:
            yield from entry(before, after, key, likely, path)


def entry(before: Any, after: Any, key: Any, likely: Collection[Any], path: str) -> Iterator[Change]:
    """How the entries of a key differ."""
    place = join(path, name_of(key))
    if key not in after:
        yield Change(place, before=plain(before[key]))
    elif key not in before:
        yield Change(place, after=plain(after[key]))
    else:
        yield from changes(before[key], after[key], likely, place)


def named_in(event: Event) -> set[Any]:
    """What an event names: the values of its fields by which a state may know what it is about."""
    return {value for name in event.__struct_fields__ if isinstance(value := getattr(event, name), UUID | str)}


def join(path: str, name: str) -> str:
    """The path of a part."""
    return f"{path}.{name}" if path else name


def plain(value: Any) -> Any:
    """A state, an event or a part of one as JSON has it."""
    return msgspec.to_builtins(value, str_keys=True, enc_hook=opened)


def opened(value: Any) -> Any:
    """What msgspec does not know of a state, as something that it does."""
    if isinstance(value, Raw):
        return msgspec.json.decode(value)
    if isinstance(value, HashTrieMap):
        return {name_of(key): part for key, part in value.items()}
    if isinstance(value, HashTrieSet):
        return sorted(value, key=str)
    return list(value) if isinstance(value, Sequence) else str(value)


def name_of(key: Any) -> str:
    """A key of a mapping, as a name in JSON."""
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)
