"""`boxoffice migrate` as several start it at once, and what it says when Postgres does not let it."""

import asyncio

import msgspec
import pytest

from common.errors import Unavailable
from common.settings import Settings
from services.cli import system
from services.cli.servers import free_port
from tests.harness import eventually


async def test_several_at_once_on_empty_servers_make_everything_once(settings: Settings) -> None:
    made: list[str] = []
    counts = await asyncio.gather(*(system.migrate(settings, made.append) for _ in range(5)))
    assert sorted(counts) == [0, 0, 0, 0, len(made)]
    assert len(set(made)) == len(made)
    assert {"created stream ORDERS", "created read model orders"} <= set(made)


async def test_one_that_waits_for_another_says_so_and_goes_on_after_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "PATIENCE_SECONDS", 0.0)
    told: list[str] = []
    async with system.alone(settings.database_url, lambda _: None):
        second = asyncio.create_task(system.migrate(settings, told.append))

        async def heard() -> list[str]:
            return told

        await eventually(heard, ["waiting for another `boxoffice migrate` to end"])
    assert await second == len(told) - 1 > 0


async def test_a_database_that_does_not_exist_is_not_called_a_server_that_does_not_answer(settings: Settings) -> None:
    elsewhere = msgspec.structs.replace(settings, database_url=settings.database_url.replace("/test_", "/no_test_"))
    for work in (system.migrate(elsewhere, print), system.rebuild("orders", elsewhere, print)):
        with pytest.raises(Unavailable, match=r"Postgres refuses: .*does not exist; create that database, or correct"):
            await work


async def test_a_server_that_is_away_is_to_be_started(settings: Settings) -> None:
    nowhere = msgspec.structs.replace(settings, database_url=f"postgresql://postgres@127.0.0.1:{free_port()}/postgres")
    for work in (system.migrate(nowhere, print), system.rebuild("orders", nowhere, print)):
        with pytest.raises(Unavailable, match=r"Postgres does not answer: ConnectionRefusedError: .*; start it"):
            await work
