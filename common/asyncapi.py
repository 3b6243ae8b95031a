"""What services tell and ask each other, as AsyncAPI 3: made from the code that tells, hears, asks and answers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from inspect import cleandoc
from pkgutil import iter_modules
from typing import Any, get_args

from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER
from nats.micro.service import DEFAULT_QUEUE_GROUP

from common import requests, topology
from common.aggregate import Decider
from common.events import EVENTS, OWNERS, UPCASTS, events_of, type_of
from common.listener import Listener
from common.projector import ReadModel
from common.requests import Endpoint, Failure
from common.requests.redelivery import endpoint_of
from common.schemas import STREAM_OF, Schema, Schemas
from common.topology import ANSWERS, CONSUMER, FOLLOWERS, LISTENS, REDELIVER, REDELIVERS, STREAMS, Follower, Stream

Document = dict[str, Any]

STREAM: Mapping[str, Stream] = {stream.name: stream for stream in STREAMS}

TRACED: Schema = {
    "correlation-id": {
        "type": "string",
        "description": "The conversation: the same in all that one click, or one request of a program, caused.",
    },
    "causation-id": {"type": "string", "description": "The event or request that led to this."},
    "traceparent": {"type": "string", "description": "W3C trace context of what it is a part of."},
}

ENVELOPE: Schema = {
    "type": "object",
    "description": "The headers of every event. Those that CloudEvents names begin with `ce-`.",
    "properties": {
        "Nats-Msg-Id": {"type": "string", "description": "The same as `ce-id`: the server takes it once."},
        "Nats-Expected-Last-Subject-Sequence": {
            "type": "string",
            "description": "The guard: the sequence of the event on this subject on which it was decided, 0 for none. "
            "Of several that were decided together, the first has it.",
        },
        "ce-specversion": {"const": "1.0"},
        "ce-id": {"type": "string", "format": "uuid", "description": "The event's own id: a UUIDv7, or one made from "
                  "its cause where it can happen only once."},
        "ce-type": {"type": "string", "description": "Which event it is: the `type` of its body."},
        "ce-source": {"type": "string", "description": "`/` and its subject."},
        "ce-time": {"type": "string", "format": "date-time", "description": "When it was appended, by the clock of who "
                    "did."},
        "ce-sequence": {"type": "string", "description": "The version of its aggregate: the `version` of its body."},
        **TRACED,
    },
    "required": [
        *("ce-specversion", "ce-id", "ce-type", "ce-source", "ce-time", "ce-sequence"),
        *("correlation-id", "causation-id"),
    ],
}  # fmt: skip

DEAD: Schema = {
    "type": "object",
    "description": "The headers of the event, and beside them who gave up on it and why.",
    "properties": {
        "dead-listener": {"type": "string", "description": "The durable consumer of the listener."},
        "dead-stream": {"type": "string", "description": "The stream that the event is in."},
        "dead-subject": {"type": "string", "description": "Its subject there."},
        "dead-sequence": {"type": "string", "description": "Its sequence there."},
        "dead-attempts": {"type": "string", "description": "How often it was tried."},
        "dead-error": {"type": "string", "description": "What went wrong the last time."},
    },
}
DEAD["required"] = [*DEAD["properties"]]

ASKED: Schema = {"type": "object", "description": "The headers of a request.", "properties": TRACED}

FAILED: Schema = {
    "type": "object",
    "description": "The headers of an answer that tells an error.",
    "properties": {
        ERROR_CODE_HEADER: {"type": "string", "description": "The kind of the error, as in the body."},
        ERROR_HEADER: {"type": "string", "description": "What is wrong, or the beginning of it."},
    },
    "required": [ERROR_CODE_HEADER, ERROR_HEADER],
}


def document(
    deciders: Iterable[Decider[Any, Any, Any]],
    listeners: Sequence[type[Listener[Any]]],
    read_models: Sequence[ReadModel],
) -> Document:
    """The whole system as an AsyncAPI 3.0.0 document. Raises TypeError for a type that has no JSON Schema here.

    `deciders` say on which subjects which events are told, beside those that a Publisher tells; `listeners` and
    `read_models` who hears them.
    """
    schemas = Schemas("#/components/schemas/")
    subjects = subjects_of(deciders)
    asked = [*endpoints()]
    channels = {
        **{name: _channel(name, tags) for name, tags in subjects.items()},
        "dead": _dead_channel(),
        **{endpoint.subject: _question_channel(endpoint) for endpoint in asked},
        **{reply_of(endpoint): _reply_channel(endpoint) for endpoint in asked},
    }
    operations = dict(
        operation
        for several in (
            _tellings(subjects),
            *(_hearings(listener, subjects) for listener in listeners),
            *(_projections(model, subjects) for model in read_models),
            *(_followings(follower, subjects) for follower in FOLLOWERS),
            _buryings(),
            *(_askings(endpoint) for endpoint in asked),
        )
        for operation in several
    )
    messages = {
        **{tag: _event(tag, schemas) for tag in EVENTS},
        **{tag: _old_event(tag) for tag in UPCASTS if tag not in EVENTS},
        "dead_letter": _dead_letter(),
        **{endpoint.subject: _question(endpoint, schemas) for endpoint in asked},
        **{reply_of(endpoint): _answer(endpoint, schemas) for endpoint in asked},
        "failure": _failure(schemas),
    }
    own = {"Envelope": ENVELOPE, "DeadLetterHeaders": DEAD, "RequestHeaders": ASKED, "FailureHeaders": FAILED}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Boxoffice",
            "version": "0.1.0",
            "description": "What the services tell each other, for ever, on JetStream, and what they ask each other.",
            "tags": [{"name": service} for service in topology.SERVICES],
        },
        "defaultContentType": "application/json",
        "servers": {"nats": SERVER},
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages,
            "schemas": {**schemas.definitions, **own},
            "securitySchemes": {"user": USER},
        },
    }


USER = {"type": "userPassword", "description": "Each service is a user of its own, with rights to what is here its."}
SERVER = {
    "host": "{address}",
    "protocol": "nats",
    "description": "NATS with JetStream.",
    "variables": {"address": {"default": "127.0.0.1:4222", "description": "As BOXOFFICE_NATS_URL has it."}},
    "security": [{"$ref": "#/components/securitySchemes/user"}],
}


def subjects_of(deciders: Iterable[Decider[Any, Any, Any]]) -> Mapping[str, Sequence[str]]:
    """On subjects that begin with what, the types of events that are told there.

    Those of which no rules decide are told by a Publisher, which begins its subjects with their owner.
    """
    subjects: dict[str, list[str]] = {}
    for decider in deciders:
        told = map(type_of, get_args(decider.events) or (decider.events,))
        subjects.setdefault(decider.name, []).extend(told)
    decided = {tag for tags in subjects.values() for tag in tags}
    for owner in OWNERS:
        if left := [tag for tag in map(type_of, events_of(owner)) if tag not in decided]:
            subjects.setdefault(owner, []).extend(left)
    return subjects


def endpoints() -> Iterator[Endpoint[Any, Any]]:
    """All that services ask each other: the endpoints in `common/requests`, and the one of whoever has listeners."""
    for module in iter_modules(requests.__path__, f"{requests.__name__}."):
        yield from (thing for thing in vars(import_module(module.name)).values() if isinstance(thing, Endpoint))
    yield from map(endpoint_of, LISTENS)


def askers_of(endpoint: Endpoint[Any, Any]) -> Sequence[str]:
    """Which other services may ask it."""
    return (REDELIVERS,) if endpoint.name == REDELIVER else ANSWERS[endpoint.service]


def reply_of(endpoint: Endpoint[Any, Any]) -> str:
    """The name of the channel, and of the message, of its answers."""
    return f"replies.{endpoint.service}.{endpoint.name}"


def _stream_of(name: str) -> Stream:
    return STREAM[name.partition(".")[0].upper()]


def _reference(*path: str) -> dict[str, str]:
    return {"$ref": f"#/{'/'.join(path)}"}


def _messages(*names: str) -> dict[str, dict[str, str]]:
    return {name: _reference("components", "messages", name) for name in names}


def _tags(*services: str) -> list[dict[str, str]]:
    return [{"name": service} for service in dict.fromkeys(services)]


def _prose(thing: Any) -> str:
    return cleandoc(thing.__doc__ or "")


def _channel(name: str, tags: Sequence[str]) -> dict[str, Any]:
    stream = _stream_of(name)
    kept = f"for {stream.max_age:,.0f} s" if stream.max_age else "for ever"
    return {
        "address": f"{name}.{{id}}",
        "description": f"In stream {stream.name}, kept {kept}. Each id has its own subject.",
        "parameters": {"id": {"description": "Of whom or what it is told: a UUID."}},
        "messages": _messages(*tags),
        "tags": _tags(*stream.writers),
        "x-stream": stream.name,
        "x-readers": [*stream.readers],
    }


def _tellings(subjects: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in subjects:
        for service in _stream_of(name).writers:
            what = f"The {service} service tells what happened."
            yield f"{service}.tells.{name}", _operation("send", name, what, subjects[name], service)


def _operation(action: str, channel: str, what: str, messages: Iterable[str], *services: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": _reference("channels", channel),
        "description": what,
        "messages": [_reference("channels", channel, "messages", message) for message in messages],
        "tags": _tags(*services),
    }


def _hearings(
    listener: type[Listener[Any]], subjects: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    consumer = CONSUMER[listener.durable]
    parts = {
        name: [tag for tag in tags if tag in listener.hears]
        for name, tags in subjects.items()
        if consumer.hears(_stream_of(name).name, f"{name}.id")
    }
    heard = {name: tags for name, tags in parts.items() if tags}
    for name, tags in heard.items():
        operation = _operation("receive", name, _prose(listener), tags, consumer.service)
        operation["title"] = listener.__name__
        operation["x-listener"] = {
            "durable": consumer.durable,
            "stream": consumer.stream,
            "filter": consumer.subject or ">",
            "attempts": listener.attempts,
        }
        yield (consumer.durable if len(heard) == 1 else f"{consumer.durable}.{name}"), operation


def _projections(model: ReadModel, subjects: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    skipped = {type_of(event) for event in model.skips}
    for name, tags in subjects.items():
        if _stream_of(name).name in model.sources:
            what = f"Read model {model.name} is made from it, and may be made anew at any time."
            read = [tag for tag in tags if tag not in skipped]
            operation = _operation("receive", name, what, read, model.service)
            yield f"read-model.{model.name}.{name}", operation | {"x-read-model": model.name}


def _followings(follower: Follower, subjects: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, tags in subjects.items():
        if _stream_of(name).name in follower.streams:
            operation = _operation("receive", name, follower.what, tags, *follower.services)
            yield f"{follower.name}.{name}", operation | {"x-follower": follower.name}


def _event(tag: str, schemas: Schemas) -> dict[str, Any]:
    event = EVENTS[tag]
    stream = STREAM[STREAM_OF[event]]
    older = {"x-upcast": "Older shapes of it are read as this one."} if tag in UPCASTS else {}
    return {
        "name": tag,
        "title": event.__name__,
        "description": _prose(event),
        "headers": _reference("components", "schemas", "Envelope"),
        "correlationId": {"location": "$message.header#/correlation-id"},
        "payload": schemas.of(event),
        "tags": _tags(*stream.writers),
        **older,
    }


def _old_event(tag: str) -> dict[str, Any]:
    what = "Nobody tells it any more. What was recorded is read as one of today's events."
    return {"name": tag, "description": what, "deprecated": True}


def _dead_channel() -> dict[str, Any]:
    return {
        "address": "dead.{listener}",
        "description": "In stream DEAD: events that a listener gave up on.",
        "parameters": {"listener": {"description": "Its durable consumer.", "enum": [*CONSUMER]}},
        "messages": _messages("dead_letter"),
        "tags": _tags(*LISTENS),
        "x-stream": "DEAD",
        "x-readers": [*STREAM["DEAD"].readers],
    }


def _dead_letter() -> dict[str, Any]:
    return {
        "name": "dead_letter",
        "title": "Dead letter",
        "description": "An event as it was recorded, that a listener failed to hear for good.",
        "headers": _reference("components", "schemas", "DeadLetterHeaders"),
        "payload": {"description": "The body of the event, whatever it is."},
        "tags": _tags(*LISTENS),
    }


def _buryings() -> Iterator[tuple[str, dict[str, Any]]]:
    for service in LISTENS:
        what = f"A listener of the {service} service gives up on an event after its last attempt."
        yield f"{service}.buries", _operation("send", "dead", what, ["dead_letter"], service)
    for service in STREAM["DEAD"].readers:
        what = f"The {service} service shows operators what was given up on."
        yield f"{service}.digs", _operation("receive", "dead", what, ["dead_letter"], service)


def _question_channel(endpoint: Endpoint[Any, Any]) -> dict[str, Any]:
    return {
        "address": endpoint.subject,
        "description": f"The {endpoint.service} service is asked. The same question again changes nothing.",
        "messages": _messages(endpoint.subject),
        "tags": _tags(endpoint.service),
    }


def _reply_channel(endpoint: Endpoint[Any, Any]) -> dict[str, Any]:
    return {
        "address": None,
        "description": "The inbox of who asked.",
        "messages": _messages(reply_of(endpoint), "failure"),
        "tags": _tags(endpoint.service),
    }


def _askings(endpoint: Endpoint[Any, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    inbox = ("channels", reply_of(endpoint))
    reply = {
        "channel": _reference(*inbox),
        "messages": [_reference(*inbox, "messages", name) for name in (reply_of(endpoint), "failure")],
    }
    what = f"The {endpoint.service} service answers; of its replicas, one."
    answering = _operation("receive", endpoint.subject, what, [endpoint.subject], endpoint.service)
    queue = {"nats": {"queue": DEFAULT_QUEUE_GROUP, "bindingVersion": "0.1.0"}}
    yield f"{endpoint.service}.answers.{endpoint.name}", answering | {"reply": reply, "bindings": queue}
    for asker in askers_of(endpoint):
        what = f"The {asker} service may ask."
        asking = _operation("send", endpoint.subject, what, [endpoint.subject], asker)
        yield f"{asker}.asks.{endpoint.service}.{endpoint.name}", asking | {"reply": reply}


def _question(endpoint: Endpoint[Any, Any], schemas: Schemas) -> dict[str, Any]:
    return {
        "name": endpoint.subject,
        "title": endpoint.question.__name__,
        "description": _prose(endpoint.question),
        "headers": _reference("components", "schemas", "RequestHeaders"),
        "payload": schemas.of(endpoint.question),
        "tags": _tags(endpoint.service),
    }


def _answer(endpoint: Endpoint[Any, Any], schemas: Schemas) -> dict[str, Any]:
    return {
        "name": reply_of(endpoint),
        "title": endpoint.answer.__name__,
        "description": _prose(endpoint.answer),
        "payload": schemas.of(endpoint.answer),
        "tags": _tags(endpoint.service),
    }


def _failure(schemas: Schemas) -> dict[str, Any]:
    return {
        "name": "failure",
        "title": "Failure",
        "description": _prose(Failure),
        "headers": _reference("components", "schemas", "FailureHeaders"),
        "payload": schemas.of(Failure),
    }
