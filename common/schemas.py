"""The shapes of events and requests as JSON Schema, made from their types.

`msgspec.json.schema` would leave out what a change must not go unseen in: that a string is a time, which keys a mapping
has, and what is personal. And it writes tuples as AsyncAPI 3, whose schemas are those of draft 07, does not know them.
"""

from collections.abc import Iterator, Mapping
from inspect import cleandoc
from typing import Any

import msgspec
from msgspec import inspect

from common.events import EVENTS, OWNERS, UPCASTS, Event, events_of
from common.events.base import PERSONAL

DIALECT = "http://json-schema.org/draft-07/schema#"
MARK = f"x-{PERSONAL}"
"""Under which a schema says what is personal, as the field does: `person`, `content` or `address`."""

Schema = dict[str, Any]

BOUNDS: Mapping[str, str] = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "min_length": "minLength",
    "max_length": "maxLength",
    "pattern": "pattern",
}
ITEM_BOUNDS: Mapping[str, str] = {"min_length": "minItems", "max_length": "maxItems"}
KEY_BOUNDS: Mapping[str, str] = {"min_length": "minProperties", "max_length": "maxProperties"}


class Schemas:
    """Schemas of types, and the definitions to which they refer: one for each Struct, by its name."""

    def __init__(self, place: str = "#/definitions/") -> None:
        """`place`: where the definitions will be found."""
        self.definitions: dict[str, Schema] = {}
        self._place = place
        self._named: dict[str, type] = {}

    def of(self, kind: Any) -> Schema:
        """The schema of a type. Raises TypeError for one of which this does not know how it is written."""
        return self._of(inspect.type_info(kind))

    def _of(self, info: inspect.Type) -> Schema:
        match info:
            case inspect.Metadata(type=inner, extra=extra, extra_json_schema=more):
                mark = {MARK: extra[PERSONAL]} if extra and PERSONAL in extra else {}
                return self._of(inner) | (more or {}) | mark
            case inspect.AnyType() | inspect.RawType():
                return {}
            case inspect.NoneType():
                return {"type": "null"}
            case inspect.BoolType():
                return {"type": "boolean"}
            case inspect.IntType():
                return {"type": "integer"} | _bounds(info, BOUNDS)
            case inspect.FloatType():
                return {"type": "number"} | _bounds(info, BOUNDS)
            case inspect.StrType():
                return {"type": "string"} | _bounds(info, BOUNDS)
            case inspect.BytesType():
                return {"type": "string", "contentEncoding": "base64"}
            case inspect.UUIDType():
                return {"type": "string", "format": "uuid"}
            case inspect.DateTimeType():
                return {"type": "string", "format": "date-time"}
            case inspect.DateType():
                return {"type": "string", "format": "date"}
            case inspect.DecimalType():
                return {"type": "string", "format": "decimal"}
            case inspect.LiteralType(values=values):
                return {"enum": sorted(values)}
            case inspect.EnumType(cls=cls):
                return {"enum": sorted(to_json(each) for each in cls)}
            case inspect.UnionType(types=types):
                return {"anyOf": [self._of(each) for each in types]}
            case inspect.TupleType(item_types=items):
                size = {"minItems": len(items), "maxItems": len(items)}
                return {"type": "array", "items": [self._of(each) for each in items]} | size
            case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
                return {"type": "array", "items": self._of(item)} | _bounds(info, ITEM_BOUNDS)
            case inspect.SetType(item_type=item) | inspect.FrozenSetType(item_type=item):
                return {"type": "array", "items": self._of(item), "uniqueItems": True} | _bounds(info, ITEM_BOUNDS)
            case inspect.DictType(key_type=key, value_type=value) if (names := self._of(key)).get("type") != "integer":
                named = {} if names == {"type": "string"} else {"propertyNames": names}
                return {"type": "object", "additionalProperties": self._of(value)} | named | _bounds(info, KEY_BOUNDS)
            case inspect.StructType(cls=cls, array_like=False):
                return self._reference(cls, info)
            case _:
                raise TypeError(f"{info}: say how it is written in JSON, in common/schemas.py")

    def _reference(self, cls: type, info: inspect.StructType) -> Schema:
        name = cls.__name__
        if self._named.setdefault(name, cls) is not cls:
            raise TypeError(f"{cls} and {self._named[name]} have one name: give one of them another")
        if name not in self.definitions:
            self.definitions[name] = {}  # it may name itself
            self.definitions[name] = self._struct(info)
        return {"$ref": self._place + name}

    def _struct(self, info: inspect.StructType) -> Schema:
        tag = {info.tag_field: {"const": info.tag}} if info.tag_field else {}
        required = [*tag, *(field.encode_name for field in info.fields if field.required)]
        schema: Schema = {
            "title": info.cls.__name__,
            "description": cleandoc(info.cls.__doc__ or ""),
            "type": "object",
            "properties": tag | {field.encode_name: self._field(field) for field in info.fields},
            "required": required,
        }
        return schema | ({"additionalProperties": False} if info.forbid_unknown_fields else {})

    def _field(self, field: inspect.Field) -> Schema:
        schema = self._of(field.type)
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        return schema if default in (msgspec.NODEFAULT, msgspec.UNSET) else schema | {"default": to_json(default)}


def to_json(value: Any) -> Any:
    """A value as what JSON has."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _bounds(info: inspect.Type, names: Mapping[str, str]) -> Schema:
    told = {name: getattr(info, ours, None) for ours, name in names.items()}
    return {name: bound for name, bound in told.items() if bound is not None}


class Shape(msgspec.Struct, frozen=True):
    """How an event is written: in which `stream`, and as which definition."""

    stream: str
    definition: str


class Shapes(msgspec.Struct, frozen=True):
    """How all events are written, by their type; what is kept of a release, for later ones to be held against.

    `upcasts`: the types that are no longer told, or were written otherwise, and are still read.
    """

    events: dict[str, Shape]
    upcasts: list[str]
    definitions: dict[str, Schema]


STREAM_OF: Mapping[type[Event], str] = {event: owner.upper() for owner in OWNERS for event in events_of(owner)}
"""The stream that each event is told in."""


def shapes_of(events: Mapping[str, tuple[str, type[Event]]], upcasts: Mapping[str, object]) -> Shapes:
    """How these events are written: by type, in which stream, and the class."""
    schemas = Schemas()
    told: dict[str, Shape] = {}
    for tag, (stream, event) in events.items():
        schemas.of(event)
        told[tag] = Shape(stream, event.__name__)
    return Shapes(told, sorted(upcasts), schemas.definitions)


def shapes() -> Shapes:
    """How events are written today."""
    return shapes_of({tag: (STREAM_OF[event], event) for tag, event in EVENTS.items()}, UPCASTS)


def written(told: Shapes) -> str:
    """As text that is the same for the same, with a line for each thing that may change."""
    return msgspec.json.format(msgspec.json.encode(told, order="sorted"), indent=2).decode() + "\n"


def name_in(place: str) -> str:
    """The name of the definition to which a `$ref` leads."""
    return place.rpartition("/")[2]


def alternatives(schema: Schema, definitions: Mapping[str, Schema]) -> Iterator[Schema]:
    """Of what a value may be any one, references followed."""
    if "$ref" in schema:
        yield from alternatives(definitions[name_in(schema["$ref"])], definitions)
    elif "anyOf" in schema:
        for each in schema["anyOf"]:
            yield from alternatives(each, definitions)
    elif "enum" in schema:
        for value in schema["enum"]:
            yield {"const": value}
    else:
        yield schema


def kind_of(schema: Schema) -> str:
    """Of which kind an alternative is: what JSON has, or one value, an object with fields, a mapping, anything."""
    if "const" in schema:
        return "value"
    if schema.get("type") == "object":
        return "fields" if "properties" in schema else "mapping"
    return str(schema.get("type", "anything"))
