"""What runs inside the sandbox of `boxoffice replay decide`: the rules of one revision, over events that it is handed.

It is started as a file, with the code of that revision to import, and asks nothing of the code beside it. It hears on
its standard input and answers on its standard output, in frames of MessagePack; it can reach nothing else.
"""

import gc
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from hashlib import blake2b
from importlib import import_module
from typing import Any, BinaryIO, get_args

import msgspec

REFUSED = (
    *("socket.", "subprocess.", "pty.", "shutil.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"),
    *("os.kill", "signal.pthread_kill"),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"),
)
"""What rules may not do, as Python's audit events are called. Rules that mean harm are not held back by it."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

Row = tuple[int, str, str, str, str, bytes]
"""An event as it is stored: its sequence, subject, type, time, causation id and body."""


class Setup(msgspec.Struct, frozen=True):
    """What is to be done: fold what is recorded, try it again, or both.

    `rules`: where the rules are, as `module:attribute`, each Decider or Deciders by name. `after`: the sequence up to
    which nothing is decided again.
    """

    rules: Sequence[str]
    after: int
    folds: bool
    tries: bool


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The rules are there, but for `missing` ones; of `mute` ones no command is known, so nothing is decided again."""

    missing: Sequence[str]
    mute: Sequence[str]


class Broken(msgspec.Struct, frozen=True, tag=True):
    """It cannot go on, and why."""

    why: str


class Difference(msgspec.Struct, frozen=True):
    """A decision that ends otherwise: the command at that place of the log, what is recorded, and what is made today.

    `refused`: why nothing is made, if it is refused or fails.
    """

    sequence: int
    time: str
    command: dict[str, Any]
    recorded: Sequence[dict[str, Any]]
    tried: Sequence[dict[str, Any]]
    refused: str


class Unfolded(msgspec.Struct, frozen=True):
    """Where `evolve` failed, and how."""

    sequence: int
    error: str


class Finding(msgspec.Struct, frozen=True):
    """What is found of one aggregate: how many decisions differ, the first of them, and where states end.

    `recorded` and `tried`: digests of the states, empty for what was not folded.
    """

    subject: str
    first: Difference | None
    differing: int
    unfolded: Unfolded | None
    recorded: bytes
    tried: bytes


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """What came of it. `as_recorded`: events that were taken as they stand; `unruled`: those without rules here."""

    events: int
    aggregates: int
    decisions: int
    as_recorded: int
    unruled: int
    findings: Sequence[Finding]


class States(msgspec.Struct, frozen=True, tag=True):
    """States in JSON, by subject; empty for what was not folded."""

    recorded: Mapping[str, bytes]
    tried: Mapping[str, bytes]


Answer = Ready | Broken | Outcome | States


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Raises PermissionError for what rules may not do."""
    if event.startswith(REFUSED) or (event == "open" and arguments[2] & WRITES and arguments[0] != os.devnull):
        raise PermissionError(f"rules that are tried may not do this: {event} {arguments[:2]}")


def plain(value: Any) -> Any:
    """What msgspec does not know of a state, as something that it does."""
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    if isinstance(value, Mapping):
        return {name_of(key): value[key] for key in value}
    if isinstance(value, Set):
        return sorted(value, key=str)
    if isinstance(value, Sequence):
        return list(value)
    return repr(value)


def name_of(key: Any) -> str:
    """A key of a mapping, as a name in JSON."""
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def encode(value: Any) -> bytes:
    """A state or an event in JSON, such that equal ones are equal bytes, also of two revisions."""
    return msgspec.json.encode(msgspec.to_builtins(value, str_keys=True, enc_hook=plain, order="sorted"))


def digest_of(state: Any) -> bytes:
    """By which equal states are known."""
    return blake2b(encode(state), digest_size=16).digest()


def told(value: Any) -> dict[str, Any]:
    """A command or an event, as it is told to people."""
    fields: dict[str, Any] = msgspec.to_builtins(value, str_keys=True, enc_hook=plain)
    return fields if "type" in fields else {"type": type(value).__name__, **fields}


class Pending:
    """A decision whose events are not all seen yet. `aligned`: both states were one when it was decided."""

    __slots__ = ("aligned", "causation", "command", "made", "recorded", "refused", "sequence", "time")

    def __init__(self, sequence: int, time: str, causation: str, command: Any, event: Any) -> None:
        self.sequence = sequence
        self.time = time
        self.causation = causation
        self.command = command
        self.recorded = [event]
        self.made: list[Any] = []
        self.refused = ""
        self.aligned = False


class Aggregate:
    """Two timelines of an aggregate: what is recorded, folded, and what the rules make of its commands.

    `version`: of the tried one.
    """

    __slots__ = (
        *("differing", "first", "folds", "pending", "recorded", "rules"),
        *("subject", "touched", "tried", "tries", "unfolded", "version"),
    )

    def __init__(self, subject: str, rules: Any, *, folds: bool, tries: bool) -> None:
        self.subject = subject
        self.rules = rules
        self.folds = folds
        self.tries = tries
        self.recorded = self.tried = rules.initial
        self.version = 0
        self.pending: Pending | None = None
        self.first: Difference | None = None
        self.differing = 0
        self.unfolded: Unfolded | None = None
        self.touched = False

    def happen(self, sequence: int, event: Any) -> None:
        """Take an event as it stands, in both timelines."""
        together = self.tried is self.recorded
        self.version = self.version + 1 if self.differing else event.version
        try:
            if self.folds:
                self.recorded = self.rules.evolve(self.recorded, event)
            if self.folds and together:
                self.tried = self.recorded
            elif self.tries:
                self.tried = self.rules.evolve(self.tried, msgspec.structs.replace(event, version=self.version))
        except Exception as error:
            self.give_up(sequence, error)

    def decide(self, pending: Pending, refusal: type[Exception]) -> None:
        """Decide its command on the tried state, and let its first event happen in the recorded one."""
        self.pending = pending
        if self.tries:
            pending.aligned = self.folds and self.tried is self.recorded
            try:
                pending.made = list(self.rules.decide(pending.command, self.tried))
            except refusal as no:
                pending.refused = f"{type(no).__name__}: {no}"
            except Exception as error:
                pending.refused = f"decide fails: {type(error).__name__}: {error}"
        self.follow(pending.sequence, pending.recorded[0])

    def follow(self, sequence: int, event: Any) -> None:
        """Let an event of the pending decision happen, in the recorded timeline."""
        if self.folds:
            try:
                self.recorded = self.rules.evolve(self.recorded, event)
            except Exception as error:
                self.give_up(sequence, error)

    def settle(self) -> None:
        """Let what the pending decision made happen in the tried timeline, now that all that is recorded of it is seen.

        What equals the record leads to the state that is there already.
        """
        if (pending := self.pending) is None:
            return
        self.pending = None
        if not self.tries or self.unfolded:
            return
        if not self.differing and alike(pending.made, pending.recorded):
            if pending.aligned:
                self.tried = self.recorded
                self.version = pending.recorded[-1].version
                return
            made = pending.recorded
        else:
            replace = msgspec.structs.replace
            made = [replace(event, version=self.version + n) for n, event in enumerate(pending.made, start=1)]
            if not alike(made, pending.recorded):
                self.differ(pending, made)
        try:
            for event in made:
                self.tried = self.rules.evolve(self.tried, event)
                self.version = event.version
        except Exception as error:
            self.give_up(pending.sequence, error)

    def differ(self, pending: Pending, made: Sequence[Any]) -> None:
        """Count a decision that made something else than what is recorded, and remember the first one."""
        self.differing += 1
        if self.first is None:
            sides = ([told(event) for event in pending.recorded], [told(event) for event in made])
            self.first = Difference(pending.sequence, pending.time, told(pending.command), *sides, pending.refused)

    def give_up(self, sequence: int, error: Exception) -> None:
        """Fold no further: `evolve` failed."""
        self.pending = None
        self.unfolded = self.unfolded or Unfolded(sequence, f"{type(error).__name__}: {error}")

    def finding(self) -> Finding:
        """What is found of it."""
        self.settle()
        recorded = tried = b""
        if not self.unfolded:
            recorded = digest_of(self.recorded) if self.folds else b""
            tried = recorded if self.folds and self.tried is self.recorded else b""
            tried = tried or (digest_of(self.tried) if self.tries else b"")
        return Finding(self.subject, self.first, self.differing, self.unfolded, recorded, tried)

    @property
    def untouched(self) -> bool:
        """Whether nothing can be found: both timelines are one."""
        self.settle()
        return not self.unfolded and self.differing == 0 and self.tried is self.recorded


def alike(made: Sequence[Any], recorded: Sequence[Any]) -> bool:
    """Whether the events are the same, but for their versions."""
    if len(made) != len(recorded):
        return False
    for ours, theirs in zip(made, recorded, strict=True):
        same = msgspec.structs.replace(ours, version=theirs.version)
        if same != theirs and encode(same) != encode(theirs):
            return False
    return True


class Replay:
    """Runs the rules over the events of a stream."""

    def __init__(self, setup: Setup, rules: Mapping[tuple[str, type], Any]) -> None:
        """`rules`: the Decider of each type of event, by the name before the id in its subject."""
        from common.errors import DomainError
        from common.events import decode

        self._setup = setup
        self._rules = rules
        self._decode = decode
        self._refusal = DomainError
        self._aggregates: dict[str, Aggregate] = {}
        self._events = self._decisions = self._as_recorded = self._unruled = 0

    def take(self, row: Row) -> None:
        """The next event. Raises UndecodableEvent."""
        sequence, subject, tag, time, causation, body = row
        event = self._decode(tag, body)
        self._events += 1
        if (aggregate := self._aggregates.get(subject)) is None:
            if (rules := self._rules.get((subject.rpartition(".")[0], type(event)))) is None:
                self._unruled += 1
                return
            setup = self._setup
            aggregate = Aggregate(subject, rules, folds=setup.folds, tries=setup.tries)
            self._aggregates[subject] = aggregate
        decided = sequence > self._setup.after
        if decided:
            aggregate.touched = True
        if aggregate.unfolded:
            return
        asks = getattr(aggregate.rules, "asks", None) if decided else None
        if asks and (command := asks(event)) is not None:
            aggregate.settle()
            if not aggregate.unfolded:
                self._decisions += 1
                aggregate.decide(Pending(sequence, time, causation, command, event), self._refusal)
        elif (pending := aggregate.pending) and pending.causation == causation:
            pending.recorded.append(event)
            aggregate.follow(sequence, event)
        else:
            aggregate.settle()
            if not aggregate.unfolded:
                self._as_recorded += decided
                aggregate.happen(sequence, event)

    def outcome(self) -> Outcome:
        """What came of it; where both timelines were run, of those aggregates only in which they differ."""
        touched = [aggregate for aggregate in self._aggregates.values() if aggregate.touched]
        both = self._setup.folds and self._setup.tries
        findings = [each.finding() for each in touched if not (both and each.untouched)]
        counts = (self._events, len(touched), self._decisions, self._as_recorded, self._unruled)
        return Outcome(*counts, findings)

    def states(self, subjects: Sequence[str]) -> States:
        """The states of these aggregates."""
        found = [each for subject in subjects if (each := self._aggregates.get(subject)) and not each.unfolded]
        recorded = {each.subject: encode(each.recorded) for each in found if each.folds}
        return States(recorded, {each.subject: encode(each.tried) for each in found if each.tries})


def rules_in(where: str) -> Sequence[Any]:
    """The rules there; none where there is no such module, or nothing of that name. Raises what the module raises."""
    name, _, attribute = where.partition(":")
    try:
        found = getattr(import_module(name), attribute, {})
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            return ()
        raise
    return tuple(found.values()) if isinstance(found, Mapping) else (found,)


def frames(source: BinaryIO) -> Iterator[bytes]:
    """What is sent, until nobody is there any more."""
    while head := source.read(4):
        yield source.read(struct.unpack(">I", head)[0])


def frame(content: Any) -> bytes:
    """Something as it is sent."""
    body = msgspec.msgpack.encode(content)
    return struct.pack(">I", len(body)) + body


def loaded(setup: Setup) -> tuple[Ready, dict[tuple[str, type], Any]]:
    """The rules that are there. Raises what their modules raise."""
    missing: list[str] = []
    mute: list[str] = []
    rules: dict[tuple[str, type], Any] = {}
    for where in setup.rules:
        if not (found := rules_in(where)):
            missing.append(where)
        for each in found:
            if getattr(each, "asks", None) is None and where not in mute:
                mute.append(where)
            for event in get_args(each.events) or (each.events,):
                rules[each.name, event] = each
    return Ready(missing, mute), rules


def work(source: BinaryIO, answer: Callable[[Answer], None]) -> None:
    """Take a Setup, then events until there are no more, then ask for states until nobody does."""
    heard = frames(source)
    setup = msgspec.msgpack.decode(next(heard), type=Setup)
    ready, rules = loaded(setup)
    replay = Replay(setup, rules)
    answer(ready)
    rows = msgspec.msgpack.Decoder(list[Row])
    for each in heard:
        if not (batch := rows.decode(each)):
            break
        for row in batch:
            try:
                replay.take(row)
            except Exception as error:
                stop = f"`--until {row[0] - 1}` stops before it"
                answer(Broken(f"the event at sequence {row[0]} on {row[1]}: {error}; {stop}"))
                return
    answer(replay.outcome())
    for each in heard:
        answer(replay.states(msgspec.msgpack.decode(each, type=list[str])))


def end_with(parent: int) -> None:
    """End this process when that one is gone, also in the midst of rules that come to no end."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Work for whoever started this."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what rules print is no answer

        def answer(content: Answer) -> None:
            out.write(frame(content))
            out.flush()

        sys.addaudithook(refuse)
        gc.disable()  # states are no cycles, and all of them stay
        try:
            work(sys.stdin.buffer, answer)
        except BaseException as error:
            answer(Broken(f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
