"""What msgspec refused, in words: where it was, and what is allowed there."""

import re
from collections.abc import Sequence
from typing import Any

from msgspec import inspect

STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
NAMED = re.compile(r"(unknown|required) field `(.*)`")
OF_NAME, NAME = " - at `key` in `$", "`name`"
"""What is refused is not at the place, but how something there is named."""
VAGUE = re.compile("regex|enum|out of range")
GOT = re.compile(r", got `\w+`$")

LENGTH = re.compile(r"`(\w+)` of (length >=|length <=|at least length|at most length|length) (\d+)(?: to (\d+))?")
BOUND = re.compile(r"(?<=`) (>=|<=|>|<) (?=-?\d)")
TYPE = re.compile(r"`([\w |]+)`")

WORDS = {
    "length": "",
    "length >=": "at least ",
    "at least length": "at least ",
    "length <=": "at most ",
    "at most length": "at most ",
    ">=": " of at least ",
    "<=": " of at most ",
    ">": " above ",
    "<": " below ",
}
COUNTED = {"str": ("character", "characters"), "array": ("entry", "entries"), "object": ("field", "fields")}
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "uuid": "a UUID",
    "datetime": "a time",
}


def explain(message: str, kind: Any) -> tuple[list[str], str]:
    """The path to what was refused and what is allowed there, of a ValidationError's message and the type asked for."""
    asked = inspect.type_info(kind)
    place = ""
    if is_name := OF_NAME in message:
        message, _, place = message.rpartition(OF_NAME)
    elif " - at `$" in message:
        message, _, place = message.rpartition(" - at `$")
    place = place.rstrip("`").replace("[...]", "")  # in a dict; msgspec 0.22 does not say at which name
    path = [name or number for name, number in STEP.findall(place)]
    if named := NAMED.search(message):
        there = described(asked, path)
        return [*path, named[2]], f"Unknown; {there}" if named[1] == "unknown" else "Required"
    return path, in_words(message, asked, [*path, NAME] if is_name else path)


def in_words(message: str, kind: inspect.Type, path: Sequence[str] = ()) -> str:
    """The message with what is allowed in place of an expression or nothing, and without what came."""
    if VAGUE.search(message):
        allowed = described(kind, path) or ("a smaller number" if "out of range" in message else "something else")
        return f"Expected {allowed[0].lower()}{allowed[1:]}"
    return for_people(GOT.sub("", message))


def for_people(message: str) -> str:
    """What msgspec says, without its names for types and without signs."""
    message = LENGTH.sub(counted, message).replace("that's", "that is")
    message = BOUND.sub(lambda bound: WORDS[bound[1]], message)
    return TYPE.sub(lambda kinds: " or ".join(TYPES.get(kind, kind) for kind in kinds[1].split(" | ")), message)


def counted(length: re.Match[str]) -> str:
    """How long something may be, in what it is made of."""
    kind, how, least, most = length.groups()
    one, many = COUNTED.get(kind, ("byte", "bytes"))
    return (
        f"`{kind}` of {WORDS[how]}{f'{least} to {most}' if most else least} {one if (most or least) == '1' else many}"
    )


def described(kind: inspect.Type, path: Sequence[str] = ()) -> str | None:
    """What a type takes at `path`: its description, or the values or fields that there are."""
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=schema):
            return (not path and schema and schema.get("description")) or described(inner, path)
        case inspect.UnionType(types=kinds):
            return next(filter(None, (described(each, path) for each in kinds)), None)
        case inspect.ListType(item_type=item) if path:
            return described(item, path[1:])
        case inspect.DictType(key_type=name) if list(path) == [NAME]:
            return described(name)
        case inspect.DictType(value_type=value):  # the path does not say at which name
            return described(value, path)
        case inspect.StructType(fields=fields) if path:
            return next((described(field.type, path[1:]) for field in fields if field.encode_name == path[0]), None)
        case inspect.StructType(fields=fields):
            return "there are " + ", ".join(field.encode_name for field in fields)
        case inspect.IntType(ge=least, le=most) if most is not None:
            return f"a whole number from {least} to {most}"
        case inspect.IntType(ge=least) if least is not None:
            return f"a whole number of at least {least} and fewer digits"
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case _:
            return None
