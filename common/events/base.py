"""What all events have in common."""

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """A fact in the past tense, with its time inside.

    `version` counts the events of its aggregate from 1; the aggregate stamps it when it appends. Whoever follows a
    foreign aggregate tells from it what is new.
    """

    version: int = 0
