"""What may be asked over NATS: who somebody is, and which kind."""

from typing import Any
from uuid import UUID

import msgspec
import pytest

from common.errors import Invalid
from common.requests import Endpoint, understood
from common.requests.batch import CREATE_OPERATION, GET_OPERATION
from common.requests.orders import CANCEL_ORDERS
from common.requests.tickets import CREATE_TICKETS, UPDATE_TICKETS

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
