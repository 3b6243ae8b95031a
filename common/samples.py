"""Values that a schema allows, to try on what has to take all of them."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from common.schemas import Schema, alternatives, kind_of

DEEPEST = 6
"""Definitions in each other; of one that names itself, there is no end."""

FAR = 1000
MANY = 20
"""What stands for a bound where there is none: of numbers, of characters and items."""

TEXTS: Mapping[str, str] = {
    "uuid": "01920c3c-7a3e-7cc4-8a3e-3d1f0c5b9a10",
    "date-time": "2030-01-31T19:30:00Z",
    "date": "2030-01-31",
    "decimal": "0.5",
}


def samples(schema: Schema, definitions: Mapping[str, Schema], depth: int = 0) -> list[Any]:
    """Some values: of each alternative, and of an object each field with each of its values and, if it may be, without.

    None where a text has to be like a pattern.
    """
    made: list[Any] = []
    for each in alternatives(schema, definitions):
        match kind_of(each):
            case "value":
                made.append(each["const"])
            case "null":
                made.append(None)
            case "boolean":
                made += [True, False]
            case "integer" | "number":
                made += [*_numbers(each), *([0.5] if each == {"type": "number"} else [])]
            case "string":
                made += _texts(each)
            case "array":
                made += _lists(each, definitions, depth)
            case "mapping":
                made += _mappings(each, definitions, depth)
            case "fields" if depth < DEEPEST:
                made += _objects(each, definitions, depth + 1)
            case "anything":
                made += [{"any": ["thing"]}, None]
    return made


def _numbers(schema: Schema) -> list[Any]:
    step = schema.get("multipleOf", 1)
    least = schema.get("minimum", schema.get("exclusiveMinimum", min(-FAR, schema.get("maximum", 0)) * step) + step)
    most = schema.get("maximum", schema.get("exclusiveMaximum", max(FAR, least) * step) - step)
    return sorted({bound for bound in (-(-least // step) * step, most // step * step) if least <= bound <= most})


def _texts(schema: Schema) -> list[Any]:
    if "pattern" in schema:
        return []
    if "contentEncoding" in schema:
        return ["aGk="]
    if "format" in schema:
        return [TEXTS[schema["format"]]]
    return ["x" * size for size in _sizes(schema, "Length")]


def _lists(schema: Schema, definitions: Mapping[str, Schema], depth: int) -> list[Any]:
    if isinstance(schema["items"], list):
        each = [samples(item, definitions, depth) for item in schema["items"]]
        return [[values[0] for values in each]] if all(each) else []
    items = samples(schema["items"], definitions, depth)
    least, most = _sizes(schema, "Items")
    longest = [(items * most)[:most]] if items else []
    return [*([[]] if least == 0 else []), *([item] * max(least, 1) for item in items if most), *longest]


def _sizes(schema: Schema, of: str) -> tuple[int, int]:
    """The least and the most of something that there may be, or more than anybody expects."""
    least = schema.get(f"min{of}", 0)
    return least, schema.get(f"max{of}", least + MANY)


def _mappings(schema: Schema, definitions: Mapping[str, Schema], depth: int) -> list[Any]:
    names = samples(schema.get("propertyNames", {"type": "string"}), definitions, depth)
    values = samples(schema["additionalProperties"], definitions, depth)
    return [{}, *({name: value} for name in names for value in values)]


def _objects(schema: Schema, definitions: Mapping[str, Schema], depth: int) -> Iterator[Any]:
    values = {name: samples(field, definitions, depth) for name, field in schema["properties"].items()}
    if any(not values[name] for name in schema["required"]):
        return
    whole = {name: told[0] for name, told in values.items() if told}
    yield whole
    for name, told in values.items():
        yield from ({**whole, name: value} for value in islice(told, 1, None))
    yield {name: value for name, value in whole.items() if name in schema["required"]}
