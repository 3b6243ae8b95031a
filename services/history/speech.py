"""The AsyncAPI document as a page: which events there are, who tells and hears each, and what is in them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from common.asyncapi import Document
from common.compatibility import limits
from common.schemas import MARK, Schema, name_in

PAGE = Path(__file__).parent / "page"
CODE = re.compile(r"`([^`]+)`")


class Deed(msgspec.Struct, frozen=True):
    """What somebody does when they hear it: who, under which durable consumer if under one, and what that is."""

    service: str
    name: str
    durable: str
    what: str

    @classmethod
    def of(cls, operation: Mapping[str, Any]) -> Self:
        """What an operation of the document says."""
        services = ", ".join(tag["name"] for tag in operation["tags"])
        if "x-follower" in operation:
            return cls(services, operation["x-follower"], "", operation["description"])
        return cls(services, operation["title"], operation["x-listener"]["durable"], operation["description"])


class EventView(msgspec.Struct, frozen=True):
    """An event: under which subjects, by whom it is told, and who does what about it."""

    tag: str
    title: str
    what: str
    stream: str
    subjects: Sequence[str]
    tellers: Sequence[str]
    readers: Sequence[str]
    heard: Sequence[Deed]
    followed: Sequence[Deed]
    read_models: Sequence[str]
    shape: str
    upcast: bool


class RequestView(msgspec.Struct, frozen=True):
    """A question that one service asks another, and its answer."""

    subject: str
    service: str
    askers: Sequence[str]
    question: str
    answer: str


class PageView(msgspec.Struct, frozen=True):
    """All that is on the page. `parts`: what is in events, questions and answers, and has a name of its own."""

    title: str
    what: str
    services: Mapping[str, Sequence[EventView]]
    requests: Sequence[RequestView]
    schemas: Mapping[str, Schema]
    parts: Sequence[str]


def page_of(document: Document) -> str:
    """The page, whole: it needs no script and nothing from elsewhere but its own styles."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FileSystemLoader(PAGE))
    environment.filters |= {"prose": prose, "coded": coded, "limits": limits, "name": name_in, "as_json": _as_json}
    return environment.get_template("docs.html").render(view=view_of(document), mark=MARK)


def coded(text: str) -> Markup:
    """What a docstring says, with what it quotes as code."""
    return Markup(CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 (it is escaped)


def prose(text: str) -> Markup:
    """The same in paragraphs."""
    return Markup("").join(Markup("<p>{}</p>").format(coded(part)) for part in text.split("\n\n") if part)


def view_of(document: Document) -> PageView:
    """What the page shows of a document."""
    operations = document["operations"]
    components = document["components"]
    services: dict[str, list[EventView]] = {}
    for tag, message in components["messages"].items():
        if "Envelope" in message.get("headers", {}).get("$ref", ""):
            event = _event(tag, message, document["channels"], operations)
            services.setdefault(event.tellers[0], []).append(event)
    requests = [*_requests(document)]
    shown = {event.shape for events in services.values() for event in events}
    return PageView(
        document["info"]["title"],
        document["info"]["description"],
        dict(sorted(services.items())),
        requests,
        components["schemas"],
        sorted(name for name, schema in components["schemas"].items() if "title" in schema and name not in shown),
    )


def _event(
    tag: str, message: Mapping[str, Any], channels: Mapping[str, Any], operations: Mapping[str, Any]
) -> EventView:
    told = {name: channel for name, channel in channels.items() if tag in channel["messages"]}
    mine = [each for each in operations.values() if any(name_in(place["$ref"]) == tag for place in each["messages"])]
    channel = next(iter(told.values()))
    return EventView(
        tag,
        message["title"],
        message["description"],
        channel["x-stream"],
        [channel["address"] for channel in told.values()],
        [tag["name"] for tag in channel["tags"]],
        channel["x-readers"],
        [*dict.fromkeys(Deed.of(each) for each in mine if "x-listener" in each)],
        [*dict.fromkeys(Deed.of(each) for each in mine if "x-follower" in each)],
        sorted({each["x-read-model"] for each in mine if "x-read-model" in each}),
        name_in(message["payload"]["$ref"]),
        "x-upcast" in message,
    )


def _service(operation: Mapping[str, Any]) -> str:
    return str(operation["tags"][0]["name"])


def _requests(document: Document) -> Iterator[RequestView]:
    operations = document["operations"].values()
    messages = document["components"]["messages"]
    for each in operations:
        if each["action"] == "receive" and "reply" in each:
            subject = name_in(each["channel"]["$ref"])
            askers = [
                _service(other)
                for other in operations
                if other["action"] == "send" and other["channel"] == each["channel"]
            ]
            question = messages[subject]["payload"]["$ref"]
            answer = messages[name_in(each["reply"]["messages"][0]["$ref"])]["payload"]["$ref"]
            yield RequestView(subject, _service(each), askers, name_in(question), name_in(answer))


def _as_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
