"""The OpenAPI document, held against the running system by Schemathesis: what it finds is wrong in one of the two."""

import asyncio
import importlib
import pkgutil
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import schemathesis.specs
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, StopReason, events, from_schema

from common.runtime import Platform
from services.cli.system import SERVICES
from tests.harness import ServiceProcess

for module in pkgutil.walk_packages(schemathesis.specs.__path__, "schemathesis.specs."):
    # Now, and not deep in a stack, where Python 3.11 cannot always parse ("recursion depth mismatch").
    importlib.import_module(module.name)

SAM = {"Authorization": "Bearer dev:sam"}
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 1_000_000, "max_per_order": 1000}
WAIT = {"after": 0, "wait": 20}
EXAMPLES = 40
"""Requests for each operation, way of being wrong and phase."""

CONFIG: dict[str, Any] = tomllib.loads((Path(__file__).parents[2] / "schemathesis.toml").read_text()) | {
    "seed": 1,
    "generation": {"deterministic": True, "max-examples": EXAMPLES, "database": "none"},
}
"""What a person's `schemathesis run` here goes by, but the same at every run."""


@pytest.fixture
async def shop(platform: Platform, home: Path) -> AsyncIterator[ServiceProcess]:
    """Everything with doors in one process."""
    services = " ".join(name for name in SERVICES if name != "web")
    secret = {"BOXOFFICE_WEBHOOK_SECRET": "s" * 32}
    async with ServiceProcess(services, platform.settings, home, **secret) as process:
        yield process


async def test_the_document_says_what_the_system_does(shop: ServiceProcess) -> None:
    async with httpx.AsyncClient(base_url=shop.url, headers=SAM, timeout=10) as http:
        tickets = [(await http.post("/api/tickets", json=SHOW)).json()["id"] for _ in range(10)]
        holds = [{"ticket_id": ticket, "quantity": 1} for ticket in tickets]
        orders = [(await http.post("/api/orders", json=hold)).json()["id"] for hold in holds]
        told = [item["id"] for item in (await http.get("/api/notifications", params=WAIT)).json()["items"]]
    known = {"ticket_id": tickets, "order_id": orders, "notification_id": told}
    failures, answers = await asyncio.to_thread(explore, f"{shop.url}/api/openapi.json", known)
    assert failures == [], "\n\n".join(failures) + "\n\n" + shop.tail()
    assert min(answers.get(status, 0) for status in (200, 201, 400, 401, 404, 409)) > 0, f"shallow: {answers}"
    assert max(answers) < 500


def explore(url: str, known: dict[str, list[str]]) -> tuple[list[str], dict[int, int]]:
    """What Schemathesis finds, and how many answers it got of each status. Half of its ids are `known` ones."""
    schema = schemathesis.openapi.from_url(url, config=SchemathesisConfig.from_dict(CONFIG))

    def real(values: Any) -> Any:
        if isinstance(values, dict):
            return {name: real_id(value, known[name]) if name in known else value for name, value in values.items()}
        return values

    @schema.hook
    def map_path_parameters(_: schemathesis.HookContext, path_parameters: Any) -> Any:
        return real(path_parameters)

    @schema.hook
    def map_body(_: schemathesis.HookContext, body: Any) -> Any:
        return real(body)

    failures: list[str] = []
    answers: dict[int, int] = {}
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            for interaction in event.recorder.interactions.values():
                if interaction.response is not None:
                    status = interaction.response.status_code
                    answers[status] = answers.get(status, 0) + 1
            for checks in event.recorder.checks.values():
                failures += [
                    f"{event.label}: {check.name}: {check.failure_info.failure}\n{check.failure_info.code_sample}"
                    for check in checks
                    if check.status == Status.FAILURE and check.failure_info
                ]
        elif isinstance(event, events.NonFatalError | events.FatalError):
            failures.append(f"Schemathesis itself: {event}")
        elif isinstance(event, events.EngineFinished):
            assert event.stop_reason == StopReason.COMPLETED
    return failures, answers


def real_id(value: Any, known: list[str]) -> Any:
    """An id of something that is there, for every other id."""
    try:
        number = UUID(value).int
    except (ValueError, TypeError, AttributeError):
        return value
    return known[number % len(known)] if number % 2 else value
