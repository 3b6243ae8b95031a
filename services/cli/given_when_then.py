"""A history as a test: given what happened, when a command comes, then what should follow."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

import msgspec

import common.events
from common.errors import Invalid, NotFound
from services.cli.decide import RULES

if TYPE_CHECKING:
    from common.aggregate import Decider
    from common.event_log import Recorded

WIDTH = 120
STANDARD = ("datetime", "uuid")

HEAD = "What {subject} decided at sequence {sequence}."
NOT_YET = """
Say what it should have decided, and mend the rules: this fails until `then` has the events that should follow, or
`refused` how the command should be refused. Below it stands what was recorded.
"""
AS_RECORDED = """
It is decided so again.
"""


class Decided(msgspec.Struct, frozen=True):
    """A decision in the history of an aggregate: what was before, the command, and what was recorded.

    `rules`: the Decider, and as which expression it is imported from where.
    """

    subject: str
    sequence: int
    rules: "Decider[Any, Any, Any]"
    imported: tuple[str, str, str]
    before: Sequence[Any]
    command: Any
    recorded: Sequence[Any]

    @property
    def made_now(self) -> Sequence[Any] | None:
        """What today's rules make of it; None if they refuse it or fail."""
        state = self.rules.initial
        for version, event in enumerate(self.before, start=1):
            state = self.rules.evolve(state, msgspec.structs.replace(event, version=version))
        try:
            return list(self.rules.decide(self.command, state))
        except Exception:
            return None


def decision_in(history: "Sequence[Recorded]", at: int | None) -> Decided:
    """The decision of an aggregate that made the event at sequence `at`, or its last one.

    Raises Invalid for one whose command is not known, NotFound.
    """
    subject = history[0].subject
    rules, *imported = rules_of(subject, history[0].event)
    last = len(history) - 1
    if at is not None:
        last = next((place for place, each in enumerate(history) if each.sequence == at), -1)
    if last < 0:
        there = f"{history[0].sequence} to {history[-1].sequence}"
        raise NotFound(f"There is no event of {subject} at sequence {at}; its {len(history)} are from {there}.")
    first = begin_of(history, last, rules.asks)
    event, asks = history[first].event, rules.asks
    if asks is None or (command := asks(event)) is None:
        what = common.events.type_of(type(event))
        raise Invalid(f"What asked for {what} at sequence {history[first].sequence} is not told by it; take another.")
    end = next((n for n in range(first + 1, len(history)) if not follows(history, n, asks)), len(history))
    events = [msgspec.structs.replace(each.event, version=0) for each in history[:end]]
    where = (imported[0], imported[1], imported[2])
    return Decided(subject, history[first].sequence, rules, where, events[:first], command, events[first:])


def follows(history: "Sequence[Recorded]", place: int, asks: Any) -> bool:
    """Whether the event there only follows the one before it, of the same decision."""
    cause = history[place].cause.causation_id
    return asks(history[place].event) is None and place > 0 and history[place - 1].cause.causation_id == cause


def begin_of(history: "Sequence[Recorded]", place: int, asks: Any) -> int:
    """Where the decision begins that made the event there."""
    while asks is not None and follows(history, place, asks):
        place -= 1
    return place


def rules_of(subject: str, event: Any) -> "tuple[Decider[Any, Any, Any], str, str, str]":
    """The Decider of an event, the module that it is in, its name there, and as which expression. Raises NotFound."""
    prefix = subject.rpartition(".")[0]
    for _, places in RULES.values():
        for module, _, name in (place.partition(":") for place in places):
            found = getattr(import_module(module), name)
            named = found.items() if isinstance(found, Mapping) else [(None, found)]
            for key, rules in named:
                if rules.name == prefix and isinstance(event, get_args(rules.events) or rules.events):
                    return rules, module, name, name if key is None else f'{name}["{key}"]'
    raise NotFound(f"No rules are known for {subject}.")


def module_of(decision: Decided, *, recorded: bool) -> str:
    """The test as a module of Python, formatted. `recorded`: then follows what was recorded, else nothing yet."""
    module, name, expression = decision.imported
    imports: dict[str, set[str]] = {module: {name}, "tests.given": {"Given"}}
    service, _, _ = decision.subject.partition(".")
    events = [source(event, imports, 2) for event in decision.before]
    command = source(decision.command, imports, 2)
    facts = [source(event, imports, 2) for event in decision.recorded]
    body = [
        f"def test_{service}_at_sequence_{decision.sequence}() -> None:",
        *block("    given = Given(", [expression, *events], ")"),
        *block("    when = given.when(", [command], ")"),
    ]
    if recorded:
        body += block("    when.then(", facts, ")")
    else:
        body += ["    when.then()", *(f"    # {line}" for fact in ["recorded was:", *facts] for line in dedented(fact))]
    used = imports if recorded else imports_of([*decision.before, decision.command], module, name)
    head = HEAD.format(subject=decision.subject, sequence=decision.sequence)
    head = f'"""{head}\n{AS_RECORDED if recorded else NOT_YET}"""'
    return "\n".join([head, "", *import_lines(used), "", "", *body, ""])


def imports_of(values: Sequence[Any], module: str, name: str) -> dict[str, set[str]]:
    """What these need to be imported, beside the Decider."""
    imports: dict[str, set[str]] = {module: {name}, "tests.given": {"Given"}}
    for value in values:
        source(value, imports, 0)
    return imports


def block(begin: str, parts: Sequence[str], end: str) -> list[str]:
    """A call with each argument on lines of its own."""
    return [begin, *(f"        {part}," for part in parts), f"    {end}"]


def dedented(text: str) -> list[str]:
    """The lines of a fact, as they stand in a comment."""
    return [line.removeprefix("        ") for line in text.splitlines()]


def source(value: Any, imports: dict[str, set[str]], depth: int, room: int = 0) -> str:
    """Python that makes this value, `depth` levels deep, behind `room` characters. Adds to `imports` what it takes."""
    match value:
        case UUID():
            imports.setdefault("uuid", set()).add("UUID")
            return f'UUID("{value}")'
        case datetime():
            imports.setdefault("datetime", set()).update(("UTC", "datetime"))
            at = value.astimezone(UTC)
            numbers = [at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond]
            while len(numbers) > 3 and not numbers[-1]:
                numbers.pop()
            return f"datetime({', '.join(map(str, numbers))}, tzinfo=UTC)"
        case msgspec.Raw():
            imports.setdefault("msgspec", set()).add("")
            return f"msgspec.Raw({text_of(bytes(value))})"
        case msgspec.Struct():
            cls = type(value)
            public = cls.__name__ in common.events.__all__
            imports.setdefault("common.events" if public else cls.__module__, set()).add(cls.__name__)
            begin, named, end = f"{cls.__name__}(", [(f"{name}=", told) for name, told in told_fields(value)], ")"
        case dict():
            begin, named, end = "{", [(f"{text_of(name)}: ", told) for name, told in value.items()], "}"
        case tuple():
            begin, named, end = "(", [("", each) for each in value], ",)" if len(value) == 1 else ")"
        case list():
            begin, named, end = "[", [("", each) for each in value], "]"
        case str() | bytes():
            return text_of(value)
        case _:
            return repr(value)
    parts = [name + source(each, imports, depth + 1, len(name)) for name, each in named]
    line = f"{begin}{', '.join(parts)}{end}"
    if "\n" not in line and 4 * depth + room + len(line) + 1 <= WIDTH:
        return line
    inner = "    " * (depth + 1)
    return "\n".join([begin, *(f"{inner}{part}," for part in parts), "    " * depth + end.lstrip(",")])


def told_fields(value: msgspec.Struct) -> Iterator[tuple[str, Any]]:
    """The fields of a Struct that are not as they are by default."""
    for field in msgspec.structs.fields(value):
        told = getattr(value, field.name)
        if field.required or told != field.default:
            yield field.name, told


def text_of(value: str | bytes) -> str:
    """A literal, quoted as the formatter does."""
    quoted = repr(value)
    prefix = "b" if isinstance(value, bytes) else ""
    inner = quoted[len(prefix) + 1 : -1]
    if quoted[len(prefix)] == '"' or '"' in inner:
        return quoted
    return f'{prefix}"{inner}"'


def import_lines(imports: Mapping[str, set[str]]) -> list[str]:
    """The import statements, sorted: the standard library, then others, then ours."""
    groups: list[list[str]] = [[], [], []]
    for module in sorted(imports):
        names = imports[module]
        group = groups[0 if module in STANDARD else 1 if module == "msgspec" else 2]
        if names == {""}:
            group.append(f"import {module}")
            continue
        ordered = sorted(names, key=lambda name: (not name.isupper(), name.lower()))
        line = f"from {module} import {', '.join(ordered)}"
        if len(line) > WIDTH:
            line = "\n".join([f"from {module} import (", *(f"    {name}," for name in ordered), ")"])
        group.append(line)
    lines: list[str] = []
    for group in filter(None, groups):
        lines += ["", *group] if lines else group
    return lines


def outlook(decision: Decided, *, recorded: bool) -> str:
    """Whether the test passes by today's rules."""
    passes = decision.made_now == (list(decision.recorded) if recorded else [])
    return "it passes by today's rules" if passes else "it fails by today's rules"
