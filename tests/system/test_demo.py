"""`boxoffice demo` and `boxoffice doctor`, against a system that runs."""

import asyncio
import io
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from rich.console import Console

from common.errors import Unavailable
from common.event_log import Draft
from common.events import KindPaused, TicketCreated, TicketDetails
from common.projector import Projector
from common.runtime import Platform, running
from common.settings import Settings
from services.cli import doctor, system
from services.cli.demo import demo
from services.cli.doctor import Finding, examine
from services.cli.embedded import with_login
from services.cli.servers import NatsServer, free_port
from tests.harness import ServiceProcess, eventually
from tests.system.test_up import boxoffice


def environment(settings: Settings, **others: str) -> dict[str, str]:
    return {"BOXOFFICE_NATS_URL": settings.nats_url, "BOXOFFICE_DATABASE_URL": settings.database_url, **others}


async def findings(variables: dict[str, str]) -> list[Finding]:
    return [finding async for finding in examine(variables)]


def wrong(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.state == "wrong"]


async def test_the_demo_plays_a_sale_to_its_end(platform: Platform, home: Path) -> None:
    told = io.StringIO()
    async with ServiceProcess("tickets orders expiration", platform.settings, home) as shop:
        await demo(shop.url, Console(file=told, width=120))
    assert "That was a sale." in told.getvalue()
    assert "cancelled (expired)" in told.getvalue()


async def test_the_demo_says_what_to_do_when_nothing_runs() -> None:
    with pytest.raises(Unavailable, match="make up"):
        await demo(f"http://127.0.0.1:{free_port()}", Console(file=io.StringIO()))


async def test_the_doctor_finds_a_healthy_system_well(platform: Platform) -> None:
    found = await findings(environment(platform.settings))
    assert not wrong(found)
    assert any(finding.what == "read model orders is 0 events behind ORDERS" for finding in found)


async def test_the_doctor_finds_what_migrate_has_not_made(settings: Settings) -> None:
    found = wrong(await findings(environment(settings)))
    assert "stream ORDERS: missing" in [finding.what for finding in found]
    assert {finding.mend for finding in found} == {"run `boxoffice migrate`"}
    await system.migrate(settings, lambda _: None)
    assert not wrong(await findings(environment(settings)))


async def test_the_doctor_finds_a_consumer_that_was_deleted(platform: Platform) -> None:
    await platform.client.jetstream().delete_consumer("ORDERS", "expiration-hold-orders")
    (finding,) = wrong(await findings(environment(platform.settings)))
    assert finding.what == "consumer expiration-hold-orders on ORDERS: missing"


async def test_the_doctor_finds_a_server_that_is_away(settings: Settings) -> None:
    (finding,) = wrong(await findings(environment(settings, BOXOFFICE_NATS_URL=f"nats://127.0.0.1:{free_port()}")))
    assert "NATS does not answer" in finding.what
    assert "make up" in finding.mend


async def test_the_doctor_finds_a_password_that_is_wrong(settings: Settings) -> None:
    url = with_login(settings.nats_url, "migrate", "wrong")
    (finding,) = wrong(await findings(environment(settings, BOXOFFICE_MIGRATE_NATS_URL=url)))
    assert "refuses migrate: correct the user and the password" in finding.what
    assert "BOXOFFICE_MIGRATE_NATS_URL" in finding.mend
    assert "wrong" not in finding.what


async def listed(platform: Platform, number: int, title: str) -> None:
    """Put a listing on the log, whatever its title."""
    details, at = TicketDetails(title, 2500, "EUR", 10, 4), datetime(2030, 1, 1, tzinfo=UTC)
    ticket = TicketCreated(UUID(int=number), "sam", details, at)
    await platform.event_log.append(f"tickets.{ticket.ticket_id}", [Draft.of(ticket)], expected=0)


async def test_the_doctor_finds_a_read_model_that_stands_still(
    platform: Platform, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 1)
    async with ServiceProcess("tickets", platform.settings, home):
        await listed(platform, 1, "Opening night")
        assert not wrong(await findings(environment(platform.settings)))
        await listed(platform, 2, "What Postgres does not store: \0")
        await listed(platform, 3, "Closing night")
        (finding,) = wrong(await findings(environment(platform.settings)))
    assert finding.what == "read model tickets is 2 events behind TICKETS, and stands still"
    assert "projector_stopped" in finding.mend


LOOKED = """
select count(*) from pg_stat_activity
where application_name like 'boxoffice projector batch%' and query like 'select stream_created%'
"""


async def test_the_doctor_waits_for_a_read_model_that_catches_up(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 60)
    log, database_url = platform.event_log, platform.settings.database_url
    await log.append(
        "batch.kind", [Draft.of(KindPaused("records.insert", datetime(2030, 1, 1, tzinfo=UTC)))], expected=0
    )
    examining = asyncio.create_task(findings(environment(platform.settings)))
    watching = await asyncpg.connect(database_url)
    await eventually(lambda: watching.fetchval(LOOKED), 2)  # and both read models are behind
    await watching.close()
    async with running(
        [Projector(system.READ_MODELS[name], "BATCH", log, database_url) for name in ("batch", "batch_report")]
    ):
        found = await examining
    assert not wrong(found)
    for name in ("batch", "batch_report"):
        assert f"read model {name} is 0 events behind BATCH" in [finding.what for finding in found]


async def test_a_rebuild_that_meets_what_cannot_be_stored_says_so_and_leaves_the_read_model(platform: Platform) -> None:
    settings = platform.settings
    await listed(platform, 1, "Opening night")
    await system.rebuild("tickets", settings, lambda _stream, _done, _total: None)
    await listed(platform, 2, "What Postgres does not store: \0")
    with pytest.raises(
        Unavailable, match=r"^An event cannot be stored in read model tickets: .*0x00.* it is as it was"
    ):
        await system.rebuild("tickets", settings, lambda _stream, _done, _total: None)
    connection = await asyncpg.connect(settings.database_url)
    try:
        assert [row["title"] for row in await connection.fetch("select title from tickets.tickets")] == [
            "Opening night"
        ]
    finally:
        await connection.close()


async def test_the_doctor_finds_a_bad_setting_and_a_misspelt_one(settings: Settings) -> None:
    variables = environment(settings, BOXOFFICE_HOLD_SECONDS="soon", BOXOFFICE_HOLD_SECOND="9")
    found = await findings(variables)
    assert any("BOXOFFICE_HOLD_SECONDS='soon'" in finding.what for finding in wrong(found))
    assert any("BOXOFFICE_HOLD_SECOND is set" in finding.what for finding in found)


async def test_the_doctor_says_that_nats_runs_without_jetstream(settings: Settings) -> None:
    port = free_port()
    program = Path(sys.executable).with_name("nats-server")
    server = await asyncio.create_subprocess_exec(
        program, "-a", "127.0.0.1", "-p", str(port), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        (finding,) = wrong(await findings(environment(settings, BOXOFFICE_NATS_URL=f"nats://127.0.0.1:{port}")))
        assert finding.what == "NATS runs without JetStream: start it with `-js`."
    finally:
        server.kill()
        await server.wait()


async def test_the_doctor_finds_a_database_that_does_not_exist(platform: Platform) -> None:
    url = platform.settings.database_url.replace("/test_", "/no_test_")
    (finding,) = wrong(await findings(environment(platform.settings, BOXOFFICE_DATABASE_URL=url)))
    assert "does not exist" in finding.what
    assert finding.mend == "create that database, or correct BOXOFFICE_DATABASE_URL"


async def test_the_doctor_does_not_advise_to_rebuild_from_streams_that_are_gone(
    platform: Platform, nats: NatsServer, home: Path
) -> None:
    await nats.stop()
    shutil.rmtree(home / "nats" / "jetstream")
    await nats.start()
    code, said = await boxoffice("doctor", **environment(platform.settings))
    assert code == 1
    assert "stream ORDERS: missing" in said
    assert "rebuild" not in said
    assert said.count("→ run `boxoffice migrate`") == 1
    assert "1 thing to do." in said
