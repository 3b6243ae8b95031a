"""What services tell each other, as AsyncAPI: valid, complete, and true of what was recorded."""

import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft7Validator

from common.asyncapi import Document, document, endpoints, subjects_of
from common.events import EVENTS, UPCASTS, Event, OrderCreated, type_of
from common.masking import mask_of
from common.requests import to_headers
from common.schemas import MARK
from common.telemetry import Cause
from common.topology import ANSWERS, CONSUMERS, FOLLOWERS, HISTORY, LISTENS, STREAMS
from services.cli.system import DECIDERS, LISTENERS, READ_MODELS
from services.history.speech import page_of, prose
from tests.unit.test_events import EVERY_SAMPLE, SAMPLES, Sample

SPECIFICATION = Path(__file__).parents[1] / "asyncapi" / "3.0.0.json"
SPOKEN: Document = msgspec.json.decode(msgspec.json.encode(document(DECIDERS, LISTENERS, [*READ_MODELS.values()])))
OPERATIONS = SPOKEN["operations"].values()


def at(place: dict[str, str]) -> Any:
    """What a reference leads to."""
    found: Any = SPOKEN
    for step in place["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return found


def references(thing: Any) -> list[dict[str, str]]:
    if isinstance(thing, dict):
        own = [thing] if isinstance(thing.get("$ref"), str) else []
        return own + [place for value in thing.values() for place in references(value)]
    return [place for value in thing for place in references(value)] if isinstance(thing, list) else []


def tags_of(operation: dict[str, Any]) -> set[str]:
    return {at(at(place))["name"] for place in operation["messages"]}


def services_of(operation: dict[str, Any]) -> set[str]:
    return {tag["name"] for tag in operation["tags"]}


@pytest.fixture(scope="module")
def specification() -> Draft7Validator:
    return Draft7Validator(msgspec.json.decode(SPECIFICATION.read_bytes()))


def test_it_is_valid(specification: Draft7Validator) -> None:
    assert [error.message for error in specification.iter_errors(SPOKEN)] == []


@pytest.mark.parametrize(
    "broken",
    [
        {"channels": {"orders": {"adress": "orders.{id}"}}},
        {"operations": {"tell": {"action": "publish", "channel": {"$ref": "#/channels/orders"}}}},
        {"components": {"schemas": {"Order": {"type": "objekt"}}}},
    ],
)
def test_what_is_not_valid_is_found(specification: Draft7Validator, broken: dict[str, Any]) -> None:
    assert not specification.is_valid(SPOKEN | broken)


def test_every_reference_leads_somewhere() -> None:
    places = references(SPOKEN)
    assert len(places) > 200
    for place in places:
        at(place)


def test_every_event_is_told_by_who_may_on_a_subject_of_its_stream() -> None:
    told = [operation for operation in OPERATIONS if operation["action"] == "send"]
    assert set(EVENTS) <= {tag for operation in told for tag in tags_of(operation)}
    writers = {stream.name: {*stream.writers} for stream in STREAMS}
    for operation in told:
        stream = at(operation["channel"]).get("x-stream")
        if stream in HISTORY:
            assert services_of(operation) <= writers[stream]


def test_every_listener_hears_all_that_it_names_and_nothing_else() -> None:
    assert {listener.durable for listener in LISTENERS} == {consumer.durable for consumer in CONSUMERS}
    for listener in LISTENERS:
        heard = [each for each in OPERATIONS if each.get("x-listener", {}).get("durable") == listener.durable]
        assert set().union(*map(tags_of, heard)) == listener.hears
        assert all(each["description"] and each["action"] == "receive" for each in heard)


def test_whoever_follows_a_stream_is_named_and_may() -> None:
    code = [path for folder in ("common", "services") for path in Path(folder).rglob("*.py") if "cli" not in path.parts]
    named = {follower.name for follower in FOLLOWERS}
    for path in code:
        if re.search(r"log\.follow\(", path.read_text()) and path.name != "projector.py":
            assert any(f'name = "{name}"' in path.read_text() for name in named), (
                f"{path} is no follower in the topology"
            )
    may = {stream.name: {*stream.readers, *stream.writers} for stream in STREAMS}
    for follower in FOLLOWERS:
        told = [each for each in OPERATIONS if each.get("x-follower") == follower.name]
        assert {at(each["channel"])["x-stream"] for each in told} == {*follower.streams}
        assert all({*follower.services} == services_of(each) for each in told)
        assert all({*follower.services} <= may[stream] for stream in follower.streams)


def test_every_stream_of_a_read_model_is_read() -> None:
    for model in READ_MODELS.values():
        read = [each for each in OPERATIONS if each.get("x-read-model") == model.name]
        assert {at(each["channel"])["x-stream"] for each in read} == set(model.sources)
        assert not {type_of(event) for event in model.skips} & set().union(*map(tags_of, read))


def test_every_endpoint_is_answered_and_asked_by_who_may() -> None:
    found = {endpoint.subject: endpoint for endpoint in endpoints()}
    assert {endpoint.service for endpoint in found.values() if endpoint.name != "redeliver"} == set(ANSWERS)
    assert {endpoint.service for endpoint in found.values() if endpoint.name == "redeliver"} == set(LISTENS)
    for subject, endpoint in found.items():
        here = [each for each in OPERATIONS if at(each["channel"]).get("address") == subject]
        answering = [each for each in here if each["action"] == "receive"]
        assert [services_of(each) for each in answering] == [{endpoint.service}]
        assert answering[0]["bindings"]["nats"]["queue"]
        asking = {service for each in here if each["action"] == "send" for service in services_of(each)}
        assert asking == ({"history"} if endpoint.name == "redeliver" else {*ANSWERS[endpoint.service]})
        assert all(at(each["reply"]["channel"])["address"] is None for each in here)


def validator(schema: dict[str, Any]) -> Draft7Validator:
    return Draft7Validator({**schema, "components": SPOKEN["components"]})


@pytest.mark.parametrize(("owner", "sample"), EVERY_SAMPLE)
def test_what_was_recorded_is_as_the_document_says(owner: str, sample: Sample) -> None:
    assert owner in sample.subject
    message = SPOKEN["components"]["messages"][sample.tag]
    payload = validator(at(message["payload"]))
    assert [error.message for error in payload.iter_errors(msgspec.json.decode(sample.body))] == []
    headers = validator(at(message["headers"]))
    assert [error.message for error in headers.iter_errors(sample.headers)] == []
    assert set(sample.headers) <= set(at(message["headers"])["properties"])
    name = sample.subject.rpartition(".")[0].replace("batch.kinds", "batch")  # where kinds were told at first
    assert sample.tag in SPOKEN["channels"][name]["messages"]


def test_what_was_never_recorded_is_not_as_the_document_says() -> None:
    payload = validator(at(SPOKEN["components"]["messages"]["order_created"]["payload"]))
    [sample, *_] = [each for each in SAMPLES["orders"] if each.tag == "order_created"]
    body = msgspec.json.decode(sample.body)
    assert payload.is_valid(body)
    assert not payload.is_valid({**body, "quantity": "2"})
    assert not payload.is_valid({name: value for name, value in body.items() if name != "buyer_id"})


def test_a_request_has_the_headers_that_the_document_names() -> None:
    named = SPOKEN["components"]["schemas"]["RequestHeaders"]["properties"]
    assert set(to_headers(Cause("c", "d", "t"))) == set(named)


def marked(schema: Any) -> bool:
    """Whether it says somewhere that something in it is personal; without what it refers to."""
    if isinstance(schema, dict):
        return MARK in schema or any(marked(value) for value in schema.values())
    return isinstance(schema, list) and any(map(marked, schema))


@pytest.mark.parametrize("event", EVENTS.values())
def test_what_is_masked_is_marked(event: type[Event]) -> None:
    properties = SPOKEN["components"]["schemas"][event.__name__]["properties"]
    for field in msgspec.inspect.type_info(event).fields:  # type: ignore[attr-defined]  # it is a StructType
        told = properties[field.encode_name]
        if references(told) or "uuid" in str(told):
            continue  # what is in a part is marked there; ids are masked whatever they are
        assert marked(told) == (mask_of(field.type) is not None), field.name


def test_an_old_type_is_told_as_deprecated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UPCASTS, "order_placed", lambda body: body)
    monkeypatch.setitem(UPCASTS, "order_created", lambda body: body)
    messages = document(DECIDERS, LISTENERS, [])["components"]["messages"]
    assert messages["order_placed"]["deprecated"]
    assert ("x-upcast" in messages["order_created"], "x-upcast" in messages["order_cancelled"]) == (True, False)


def test_what_no_rules_decide_is_told_under_its_owner() -> None:
    assert subjects_of(DECIDERS)["expiration"] == ["expiration_completed"]
    assert subjects_of(DECIDERS)["identity.keys"] == ["key_created", "key_used", "key_revoked"]


def test_it_is_the_same_in_every_process() -> None:
    program = (
        "import sys, msgspec; from common.asyncapi import document; from services.cli import system;"
        "told = document(system.DECIDERS, system.LISTENERS, [*system.READ_MODELS.values()]);"
        "sys.stdout.buffer.write(msgspec.json.encode(told))"
    )
    others = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert others == msgspec.json.encode(document(DECIDERS, LISTENERS, [*READ_MODELS.values()]))


class Anchors(HTMLParser):
    """The ids of a page and where its links lead."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        for name, value in attributes:
            if name == "id" and value:
                self.ids.append(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def test_the_page_has_a_place_for_every_event_and_every_link_leads_to_one() -> None:
    page = page_of(SPOKEN)
    found = Anchors(page)
    assert len(found.ids) == len(set(found.ids))
    assert set(EVENTS) <= set(found.ids)
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert not {link for link in found.links if not re.match(r"#|/api/|data:,$", link)}
    assert not {"script", "style"} & found.names


def test_the_page_says_of_an_event_who_hears_it_and_what_is_in_it() -> None:
    page = page_of(SPOKEN)
    [part] = re.findall(r'<article id="order_cancelled".*?</article>', page, re.DOTALL)
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", part)).split())
    for said in (
        "A reservation ended without a sale. unused_payments were started and are to be voided.",
        "orders.{id} of stream ORDERS",
        "Told by orders",
        "SettlePayments of orders, orders-settle-payments Settles the payments of an order that ended",
        "TellBuyers of notification",
        "Followed by expiration.withdrawals of expiration Lets go of orders",
        "Read models orders, tickets",
        "buyer_id string personal: person required",
        'reason "buyer" or "expired" or "seller" required',
        "unused_payments list of uuid []",
    ):
        assert said in text, f"{said}\n{text}"


def test_what_docstrings_say_is_no_markup() -> None:
    assert prose("a < b `<i>`\n\nnext") == "<p>a &lt; b <code>&lt;i&gt;</code></p><p>next</p>"
    told = msgspec.json.decode(msgspec.json.encode(SPOKEN))
    told["components"]["messages"][type_of(OrderCreated)]["description"] = "<script>alert(1)</script>"
    assert "<script" not in page_of(told)
