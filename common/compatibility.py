"""Whether what was recorded can still be read, and means what it meant: today's events held against those of a release.

Fine is what is new: types of events, fields with a default, values and bounds that allow more. All else has to be
another event, or an old shape that `UPCASTS` reads. What the released code could not read of the new is told too.
"""

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

import msgspec

from common.events import UPCASTS, UndecodableEvent, decode
from common.samples import samples
from common.schemas import STREAM_OF, Schema, Shape, Shapes, alternatives, kind_of, name_in, to_json

LOWER = ("minLength", "minItems", "minProperties")
UPPER = ("maxLength", "maxItems", "maxProperties")
SAME = ("pattern", "format", "contentEncoding", "multipleOf", "uniqueItems")
"""What may go, and neither come nor become another."""

SAID = ("title", "description", "default", "examples")
"""What says nothing of which values there are. A default is looked at where a field has it."""

NEW_EVENT = "tell it as another event, or read the old shape in UPCASTS (common/events)"
KEEP_FIELD = "keep the field; or " + NEW_EVENT
GIVE_DEFAULT = "give it a default that is true of what was recorded without it; or " + NEW_EVENT


class Break(msgspec.Struct, frozen=True):
    """A change by which recorded events are read otherwise, or not at all: where, from what to what, what to do."""

    event: str
    field: str
    was: str
    now: str
    mend: str

    def __str__(self) -> str:
        where = f"{self.event}.{self.field}" if self.field else self.event
        return f"{where}: was {self.was}, is {self.now}: {self.mend}."


def breaks(was: Shapes, now: Shapes) -> list[Break]:
    """What is incompatible between a release and now, by event."""
    found: list[Break] = []
    for tag, shape in was.events.items():
        if tag not in now.events:
            if tag not in now.upcasts:
                mend = "keep its class, though nobody tells it any more, or read it in UPCASTS (common/events)"
                found.append(Break(tag, "", "an event", "unknown", mend))
            continue
        today = now.events[tag]
        if today.stream != shape.stream:
            mend = "leave it there, where it is recorded, and tell another event in the new stream"
            found.append(Break(tag, "", f"in stream {shape.stream}", f"in {today.stream}", mend))
        if tag not in now.upcasts or is_left_alone(tag, was, shape):
            comparison = _Comparison(tag, was.definitions, now.definitions)
            comparison.struct(was.definitions[shape.definition], now.definitions[today.definition], "")
            found += comparison.found
    for tag in was.upcasts:
        if tag not in now.upcasts and tag not in now.events:
            found.append(Break(tag, "", "read by UPCASTS", "unknown", "keep that function: what it reads is recorded"))
    return found


def is_left_alone(tag: str, was: Shapes, shape: Shape) -> bool:
    """Whether UPCASTS changes nothing of an event as a release wrote it: it is for shapes that are older still."""
    bodies = samples(was.definitions[shape.definition], was.definitions)
    try:
        return tag in UPCASTS and all(UPCASTS[tag](to_json(body)) == body for body in bodies)
    except Exception:  # what is wrong with it `unread` tells
        return False


def unread_before(was: Shapes, now: Shapes) -> list[str]:
    """What code of a release cannot read of what is written now, a line for each: a rollback would have it try.

    Fields that it does not know it leaves aside. Of what it reads by a function of its UPCASTS nothing is told, as what
    that does is not known here.
    """
    told = []
    for tag, shape in now.events.items():
        if tag in was.upcasts:
            continue
        if tag not in was.events:
            told.append(f"{tag}: a new type")
            continue
        comparison = _Comparison(tag, now.definitions, was.definitions, only_read=True)
        comparison.struct(now.definitions[shape.definition], was.definitions[was.events[tag].definition], "")
        told += [f"{tag}.{each.field}: is {each.was}, was {each.now}" for each in comparison.found]
    return told


def news(was: Shapes, now: Shapes) -> list[str]:
    """The types of event that were not there, or are written otherwise."""
    told = []
    for tag, shape in now.events.items():
        before = was.events.get(tag)
        if before is None:
            told.append(f"{tag} (new)")
        elif whole(was, before.definition) != whole(now, shape.definition):
            told.append(tag)
    return told


def whole(shapes: Shapes, name: str) -> Mapping[str, Schema]:
    """A definition and those that it needs, without what they say to people."""
    needed: dict[str, Schema] = {}

    def need(name: str) -> None:
        if name not in needed:
            needed[name] = _bare(shapes.definitions[name])
            for inner in _references(needed[name]):
                need(inner)

    need(name)
    return needed


def _bare(schema: Schema) -> Schema:
    fields = {name: _shown(field) for name, field in schema["properties"].items()}
    return {"properties": fields, "required": sorted(schema["required"]), "closed": "additionalProperties" in schema}


def _shown(schema: Schema) -> Schema:
    return {name: value for name, value in schema.items() if name not in ("title", "description", "examples")}


def _references(schema: Any) -> Iterator[str]:
    match schema:
        case {"$ref": str(place)}:
            yield name_in(place)
        case dict():
            for value in schema.values():
                yield from _references(value)
        case list():
            for value in schema:
                yield from _references(value)


class _Comparison:
    """Of one event, then and now. What it finds is told once, though a Struct may be in it twice."""

    def __init__(
        self, event: str, was: Mapping[str, Schema], now: Mapping[str, Schema], *, only_read: bool = False
    ) -> None:
        """`only_read`: what can be read is no break, though something of it is left aside."""
        self.found: list[Break] = []
        self._only_read = only_read
        self._event = event
        self._was = was
        self._now = now
        self._seen: set[tuple[int, int]] = set()  # definitions, by their id: a Struct may be in itself

    def struct(self, was: Schema, now: Schema, path: str) -> None:
        """The fields of an object."""
        if (id(was), id(now)) in self._seen:
            return
        self._seen.add((id(was), id(now)))
        closed = now.get("additionalProperties") is False
        if closed and "additionalProperties" not in was and not self._only_read:
            mend = "ignore what is not known (no `forbid_unknown_fields`): newer code may have written it"
            self._tell(path, "open for unknown fields", "closed", mend)
        for name, field in was["properties"].items():
            at = f"{path}.{name}" if path else name
            if name not in now["properties"]:
                if closed or not self._only_read:
                    self._tell(at, described(field, self._was), "unknown" if self._only_read else "gone", KEEP_FIELD)
                continue
            today = now["properties"][name]
            self.values(field, today, at)
            if self._only_read:
                continue
            if "default" in field and "default" in today and field["default"] != today["default"]:
                what = "keep the default: where the field was left out, it says what was meant"
                self._tell(at, f"{shown(field['default'])} by default", shown(today["default"]), what)
        for name in now["required"]:
            if name not in was["required"]:
                then = "not always there" if name in was["properties"] else "not there"
                self._tell(f"{path}.{name}" if path else name, then, "required", GIVE_DEFAULT)

    def values(self, was: Schema, now: Schema, path: str) -> None:
        """Whether each value that was allowed still is."""
        before, today = [*alternatives(was, self._was)], [*alternatives(now, self._now)]
        lost = [each for each in before if not self._taken(each, today)]
        if not lost:
            return
        kind = kind_of(lost[0])
        then, here = ([each for each in some if kind_of(each) == kind] for some in (before, today))
        if kind != "value" and len(then) == len(here) == 1:
            self._narrowed(lost[0], here[0], path)
        else:
            self._tell(path, described(was, self._was), described(now, self._now), NEW_EVENT)

    def _taken(self, was: Schema, today: list[Schema]) -> bool:
        """Whether one of these takes all that an alternative did."""
        for each in today:
            silent = _Comparison(self._event, self._was, self._now, only_read=self._only_read)
            silent._seen = {*self._seen}
            silent._narrowed(was, each, "")
            if not silent.found:
                return True
        return False

    def _narrowed(self, was: Schema, now: Schema, path: str) -> None:
        """In what one alternative takes less than another did; nothing is told if in nothing."""
        if not _shape(now):
            return  # it takes anything
        match kind_of(was), kind_of(now):
            case "value", "value" if was["const"] == now["const"] and type(was["const"]) is type(now["const"]):
                return
            case "value", ("string" | "integer" | "number"):
                if isinstance(was["const"], str) != (now["type"] == "string") or not within(was["const"], now):
                    self._tell_values(was, now, path)
            case ("integer", "number") | ("integer", "integer") | ("number", "number") | ("string", "string"):
                self._bounds(was, now, path)
            case ("null", "null") | ("boolean", "boolean"):
                return
            case "array", "array":
                self._bounds(was, now, path)
                self._items(was, now, path)
            case "fields", "fields":
                self.struct(was, now, path)
            case "mapping", "mapping":
                self._bounds(was, now, path)
                self.values(was["additionalProperties"], now["additionalProperties"], f"{path}.*")
                anything = {"type": "string"}
                self.values(was.get("propertyNames", anything), now.get("propertyNames", anything), f"{path} (key)")
            case _:
                self._tell_values(was, now, path)

    def _items(self, was: Schema, now: Schema, path: str) -> None:
        match was["items"], now["items"]:
            case list(), list() if len(was["items"]) == len(now["items"]):
                for number, pair in enumerate(zip(was["items"], now["items"], strict=True)):
                    self.values(*pair, f"{path}[{number}]")
            case list(), dict():
                for number, item in enumerate(was["items"]):
                    self.values(item, now["items"], f"{path}[{number}]")
            case dict(), dict():
                self.values(was["items"], now["items"], f"{path}[]")
            case _:
                self._tell_values(was, now, path)

    def _bounds(self, was: Schema, now: Schema, path: str) -> None:
        narrowed = (
            any(name in now and (name not in was or was[name] < now[name]) for name in LOWER)
            or any(name in now and (name not in was or was[name] > now[name]) for name in UPPER)
            or any(name in now and was.get(name) != now[name] for name in SAME)
            or _end(was, "Minimum", 1) < _end(now, "Minimum", 1)
            or _end(was, "Maximum", -1) < _end(now, "Maximum", -1)
        )
        if narrowed:
            self._tell_values(was, now, path)

    def _tell_values(self, was: Schema, now: Schema, path: str) -> None:
        self._tell(path, described(was, self._was), described(now, self._now), NEW_EVENT)

    def _tell(self, path: str, was: str, now: str, mend: str) -> None:
        self.found.append(Break(self._event, path, was, now, mend))


def _end(schema: Schema, of: str, sign: int) -> tuple[float, bool]:
    """Where the numbers end on one side, and whether they do so before it: what is greater allows less."""
    ends = [(sign * schema[name], name.startswith("e")) for name in (of.lower(), f"exclusive{of}") if name in schema]
    return max(ends, default=(-inf, False))


def _shape(schema: Schema) -> Schema:
    """Without what says nothing of the values."""
    return {name: value for name, value in schema.items() if name not in SAID and not name.startswith("x-")}


def within(value: Any, schema: Schema) -> bool:
    """Whether a value of a Literal keeps to the bounds of its type; no, where a pattern or format is asked."""
    if any(name in schema for name in SAME):
        return False
    size = len(value) if isinstance(value, str) else value
    (least, above), (most, below) = _end(schema, "Minimum", 1), _end(schema, "Maximum", -1)
    least, most = max(least, schema.get("minLength", least)), min(-most, schema.get("maxLength", -most))
    return bool(least <= size <= most and not (above and size == least) and not (below and size == most))


def shown(value: object) -> str:
    """A value as JSON."""
    return msgspec.json.encode(value).decode()


WORDS: Mapping[str, str] = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
    "minLength": "of at least {}",
    "maxLength": "of at most {}",
    "minItems": "of at least {}",
    "maxItems": "of at most {}",
    "minProperties": "of at least {}",
    "maxProperties": "of at most {}",
    "pattern": "like {}",
}


def described(schema: Schema, definitions: Mapping[str, Schema]) -> str:
    """What a schema allows, in a few words: `integer from 1 to 5`, `list of Result or null`."""
    match schema:
        case {"$ref": str(place)}:
            return name_in(place)
        case {"anyOf": list(each)}:
            return " or ".join(dict.fromkeys(described(one, definitions) for one in each))
        case {"enum": list(values)}:
            return " or ".join(map(shown, values))
        case {"const": value}:
            return shown(value)
        case {"type": "object", "title": str(title)}:
            return title
        case {"type": "object", "additionalProperties": dict(inner)}:
            names = described(schema["propertyNames"], definitions) if "propertyNames" in schema else ""
            told = f"mapping {f'from {names} ' if names else ''}to {described(inner, definitions)}"
        case {"type": "array", "items": dict(inner)}:
            told = f"list of {described(inner, definitions)}"
        case {"type": "array", "items": list(each)}:
            return f"list of exactly {', '.join(described(one, definitions) for one in each)}"
        case {"format": "date-time"}:
            told = "time"
        case {"format": str(told)} | {"contentEncoding": str(told)} | {"type": str(told)}:
            pass
        case _:
            return "anything"
    return " ".join([told, *limits(schema)])


def limits(schema: Schema) -> list[str]:
    """The bounds of a schema in words: `from 1`, `of at most 200`."""
    return [words.format(schema[name]) for name, words in WORDS.items() if name in schema]


def unread(was: Shapes) -> list[Break]:
    """Of the types that UPCASTS reads, those that it does not read as a release wrote them.

    What a function does cannot be compared, so it is tried on values that are made of the released schema.
    """
    found: list[Break] = []
    for tag, shape in was.events.items():
        bodies = samples(was.definitions[shape.definition], was.definitions) if tag in UPCASTS else []
        tried = ((wrong_with(tag, shape.stream, msgspec.json.encode(body)), body) for body in bodies)
        if told := next(((wrong, body) for wrong, body in tried if wrong), None):
            mend = f"have UPCASTS read it; what was tried is {shown(told[1])}"
            found.append(Break(tag, "", "readable", f"not: {told[0]}", mend))
    return found


def wrong_with(tag: str, stream: str, body: bytes) -> str:
    """Why a recorded body cannot be read as an event of that stream; empty if it can."""
    try:
        event = decode(tag, body)
    except UndecodableEvent as error:
        return str(error)
    today = STREAM_OF[type(event)]
    return "" if today == stream else f"as {type(event).__name__} it would be in stream {today}"
