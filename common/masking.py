"""Takes out of events what is personal; who is the same person stays the same person."""

import hmac
import secrets
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
from msgspec import inspect

from common.event_log import Stored
from common.events import Event, encode, type_of
from common.events.base import PERSONAL

MASKED = "masked"
HARMLESS = ("ce-specversion", "ce-time", "ce-sequence", "traceparent")
IDS = ("ce-id", "correlation-id", "causation-id")
USERS = 10_000
"""Of so many people at a time is kept what is made of their names."""

Mask = Callable[["Masking", Any], Any]


class Masking:
    """One mask, made with a key that nobody keeps: the same is masked as the same by one, and otherwise by another.

    What is personal is said where the field is, in `common/events`. A person becomes `person-` and 12 digits, what
    somebody wrote `masked` (of JSON the shape and the numbers stay), a URL one that leads nowhere. An id of version 5
    is made from something, and whoever guesses from what can check it: each becomes another one.

    `made_of_users`: how services make ids of users, by which the log has them. Such an id becomes the one that is made
    of the masked user, so that they are found under it.
    """

    def __init__(self, made_of_users: Sequence[Callable[[str], UUID]] = ()) -> None:
        self._key = secrets.token_bytes(32)
        self._made_of_users = made_of_users
        self._made: dict[UUID, UUID] = {}
        self.person = lru_cache(USERS)(self._person)

    def stored(self, stored: Stored, event: Event) -> Stored:
        """A message of a stream, which is this event, as it may be shown to others."""
        body = encode(self.event(event))  # first, as it says who the ids of its subject are made of
        subject = self.subject(stored.subject)
        headers = {name: stored.headers[name] for name in HARMLESS if name in stored.headers}
        headers |= {name: self._id_text(stored.headers[name]) for name in IDS if name in stored.headers}
        headers |= {"ce-type": type_of(type(event)), "ce-source": "/" + subject}
        return msgspec.structs.replace(stored, subject=subject, headers=headers, body=body)

    def event(self, event: Event) -> Event:
        """An event without what is personal in it."""
        mask = _mask_of(type(event))
        return mask(self, event) if mask else event

    def subject(self, subject: str) -> str:
        """A subject whose ids are masked."""
        return ".".join(self._id_text(token) if _is_id(token) else token for token in subject.split("."))

    def id(self, given: UUID) -> UUID:
        """An id: another one for one that is made from something."""
        if given.version != 5:
            return given
        return self._made.get(given) or UUID(bytes=self._digest(given.bytes)[:16], version=5)

    def text(self, given: str) -> str:
        """What somebody wrote. Of a JSON object or list the shape and the numbers stay."""
        if given[:1] in ("{", "["):
            try:
                return msgspec.json.encode(self.shape(msgspec.json.decode(given))).decode()
            except msgspec.DecodeError:
                pass
        return MASKED if given else ""

    def raw(self, given: msgspec.Raw) -> msgspec.Raw:
        """JSON, of which the shape and the numbers stay."""
        return msgspec.Raw(msgspec.json.encode(self.shape(msgspec.json.decode(given))))

    def shape(self, given: Any) -> Any:
        """A value of JSON with other texts."""
        match given:
            case dict():
                return {name: self.shape(value) for name, value in given.items()}
            case list():
                return [self.shape(value) for value in given]
            case str():
                return self.text(given)
            case _:
                return given

    def address(self, given: str) -> str:
        """A URL that leads nowhere (RFC 2606)."""
        return f"https://{self._digest(given.encode()).hex()[:12]}.invalid/" if given else ""

    def _person(self, given: str) -> str:
        if not given:
            return ""
        masked = f"person-{self._digest(given.encode()).hex()[:12]}"
        self._made |= {make(given): make(masked) for make in self._made_of_users}
        return masked

    def _id_text(self, given: str) -> str:
        if _is_id(given):
            return str(self.id(UUID(given)))
        return f"{MASKED}-{self._digest(given.encode()).hex()[:12]}" if given else ""

    def _digest(self, given: bytes) -> bytes:
        return hmac.digest(self._key, given, sha256)


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


BY_KIND: dict[str, Mask] = {
    "person": lambda masking, value: masking.person(value),
    "content": lambda masking, value: masking.text(value) if isinstance(value, str) else masking.raw(value),
    "address": lambda masking, value: masking.address(value),
}


@lru_cache(None)
def _mask_of(kind: type) -> Mask | None:
    return mask_of(inspect.type_info(kind))


def mask_of(info: inspect.Type) -> Mask | None:
    """How a value of a type is masked; None if there is nothing in it to mask."""
    match info:
        case inspect.Metadata(type=inner, extra=extra):
            return BY_KIND[extra[PERSONAL]] if extra and PERSONAL in extra else mask_of(inner)
        case inspect.UUIDType():
            return lambda masking, value: masking.id(value)
        case inspect.StructType(fields=fields):
            masks = {field.name: mask for field in fields if (mask := mask_of(field.type))}
            return _of_struct(masks) if masks else None
        case inspect.UnionType(types=types):
            masked = [mask for each in types if (mask := mask_of(each))]
            assert len(masked) <= 1, f"which of {types} is it?"
            return _unless_plain(masked[0]) if masked else None
        case inspect.ListType(item_type=item):
            each = mask_of(item)
            return _of_items(list, each) if each else None
        case inspect.VarTupleType(item_type=item):
            each = mask_of(item)
            return _of_items(tuple, each) if each else None
        case inspect.DictType(value_type=item):
            each = mask_of(item)
            return _of_values(each) if each else None
        case _:
            return None


def _of_struct(masks: dict[str, Mask]) -> Mask:
    return lambda masking, value: msgspec.structs.replace(
        value, **{name: mask(masking, getattr(value, name)) for name, mask in masks.items()}
    )


def _unless_plain(mask: Mask) -> Mask:
    """Of what may also be nothing or a number."""
    return lambda masking, value: value if value is None or isinstance(value, int) else mask(masking, value)


def _of_items(kind: type, mask: Mask) -> Mask:
    return lambda masking, value: kind(mask(masking, item) for item in value)


def _of_values(mask: Mask) -> Mask:
    return lambda masking, value: {name: mask(masking, item) for name, item in value.items()}
