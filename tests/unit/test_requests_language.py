"""What may be asked over NATS: who somebody is, which kind, and what led to it."""

from typing import Any
from uuid import UUID

import msgspec
import pytest

from common.errors import Invalid
from common.requests import Endpoint, from_headers, understood
from common.requests.batch import CREATE_OPERATION, GET_OPERATION
from common.requests.orders import CANCEL_ORDERS
from common.requests.tickets import CREATE_TICKETS, UPDATE_TICKETS
from common.telemetry import Cause

ID = str(UUID(int=1))
OPERATION = {"request_id": ID, "kind": "records.insert", "payload": {}}
ENDPOINTS: list[tuple[Endpoint[Any, Any], dict[str, Any]]] = [
    (CREATE_OPERATION, OPERATION),
    (GET_OPERATION, {"id": ID}),
    (CREATE_TICKETS, {"operation_id": ID, "payload": {}}),
    (UPDATE_TICKETS, {"operation_id": ID, "payload": {}}),
    (CANCEL_ORDERS, {"operation_id": ID, "payload": {}}),
]


def question(endpoint: Endpoint[Any, Any], body: dict[str, Any]) -> Any:
    """What a service is asked. Raises Invalid."""
    whole = {"commands": [body]} if "operation_id" in body else body
    return understood(msgspec.json.encode(whole), endpoint.question, "the request")


@pytest.mark.parametrize("user_id", ["sam", "auth0|123", "248289761001", "a" * 255, "~!@example.org"])
@pytest.mark.parametrize(("endpoint", "body"), ENDPOINTS)
def test_whom_a_token_names_may_ask(endpoint: Endpoint[Any, Any], body: dict[str, Any], user_id: str) -> None:
    question(endpoint, body | {"user_id": user_id})


@pytest.mark.parametrize("user_id", ["", "a\0b", "a\n", "a b", "ü", "a" * 256, "x" * 100_000])
@pytest.mark.parametrize(("endpoint", "body"), ENDPOINTS)
def test_who_cannot_be_kept_is_refused(endpoint: Endpoint[Any, Any], body: dict[str, Any], user_id: str) -> None:
    with pytest.raises(Invalid, match=r"user_id: Expected ") as refusal:
        question(endpoint, body | {"user_id": user_id})
    assert len(refusal.value.detail) < 100


@pytest.mark.parametrize("kind", ["", "x" * 101])
def test_a_kind_that_has_no_name_is_refused(kind: str) -> None:
    with pytest.raises(Invalid, match=r"^kind: "):
        question(CREATE_OPERATION, OPERATION | {"user_id": "sam", "kind": kind})


def test_the_cause_of_a_request_is_passed_on() -> None:
    headers = {"correlation-id": "c", "causation-id": ID, "traceparent": "00-1-2-01"}
    assert from_headers(headers) == Cause("c", ID, "00-1-2-01")


@pytest.mark.parametrize("value", ["", "a\0b", "a b", "x" * 30_000])
def test_a_cause_that_no_envelope_could_hold_is_not_passed_on(value: str) -> None:
    for name in ("correlation-id", "causation-id"):
        passed = from_headers({"correlation-id": "c", "causation-id": "d", "traceparent": "t"} | {name: value})
        assert value not in (passed.correlation_id, passed.causation_id)
        assert str(UUID(passed.correlation_id)) == passed.causation_id
    assert from_headers({"correlation-id": "c", "causation-id": "d", "traceparent": value}) == Cause("c", "d")
