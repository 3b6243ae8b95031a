"""What all events have in common."""

from typing import Annotated

import msgspec
from msgspec import Meta

PERSONAL = "personal"
"""Under which a field says what is personal in it: `person`, `content` or `address`. See common/masking.py."""

Person = Annotated[str, Meta(extra={PERSONAL: "person"})]
"""Who somebody is."""

Content = Annotated[str, Meta(extra={PERSONAL: "content"})]
"""What somebody wrote, or what quotes it."""

Address = Annotated[str, Meta(extra={PERSONAL: "address"})]
"""A URL of somebody's own."""

PLACE = "place"
"""Under which a field says that it is a sequence; of which stream, its type says."""

Cursor = Annotated[int, Meta(extra={PLACE: True})]
"""A sequence of the stream that the event itself is in. An import that numbers that stream anew has it follow."""


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """A fact in the past tense, with its time inside.

    `version` counts the events of its aggregate from 1; the aggregate stamps it when it appends. Whoever follows a
    foreign aggregate tells from it what is new.
    """

    version: int = 0
