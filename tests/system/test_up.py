"""`boxoffice up` and its sisters as a person at a terminal has them: real processes, signals, ports and folders."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec
import psutil  # type: ignore[import-untyped]  # psutil ships no types
import pytest

from common.runtime import Platform
from common.settings import BadSetting, Settings
from services.cli.embedded import Running, find_running, warnings_of
from services.cli.servers import free_port
from services.identity.oidc import ProviderSettings
from tests.harness import ServiceProcess, eventually, unlimited
from tests.oidc_server import oidc_server

BOXOFFICE = str(Path(sys.executable).with_name("boxoffice"))
SECONDS = 60
SAM = {"Authorization": "Bearer dev:sam"}
ADA = {"Authorization": "Bearer dev:ada"}
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 3}


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This one, without settings of whoever runs the tests."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("BOXOFFICE_")}
    return {**ours, "COLUMNS": "200", **unlimited(), **variables}


async def boxoffice(*arguments: str, **variables: str) -> tuple[int, str]:
    """Run a command to its end: the exit code, and what it said, without the frames around errors."""
    process = await asyncio.create_subprocess_exec(
        *(BOXOFFICE, *arguments),
        env=environment(variables),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode()


class Up:
    """`boxoffice up` as a child with a folder and a port of its own."""

    def __init__(self, home: Path, *options: str, port: int | None = None, variables: Mapping[str, str] = {}) -> None:
        self.data = home / "data"
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = options
        self._environment = environment(variables)
        self._output = home / "up.log"
        self._process: asyncio.subprocess.Process | None = None
        self._seen: set[psutil.Process] = set()

    async def start(self, until: str = "Ctrl-C stops it.") -> Self:
        """Return when it has said `until`."""
        with self._output.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(BOXOFFICE, "up", "--port", str(self.port), "--data", str(self.data), *self._options),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        await self.says(until)
        return self

    @property
    def said(self) -> str:
        return self._output.read_text()

    async def says(self, text: str) -> None:
        """Wait until it has said `text`."""

        async def heard() -> bool:
            assert self._process is not None
            assert text in self.said or self._process.returncode is None, self.said
            return text in self.said

        await eventually(heard, True, SECONDS)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._seen = self.family()
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), SECONDS)

    def family(self) -> set[psutil.Process]:
        """It, and all that it started."""
        assert self._process is not None
        main = psutil.Process(self._process.pid)
        return {main, *main.children(recursive=True)}

    def server(self, program: str) -> psutil.Process:
        """Its child of this name."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children()
        return next(child for child in children if child.name() == program)

    def left_behind(self) -> list[str]:
        """What is still there of it: processes, an open port, sockets, locks, and the note that it runs."""
        left = [f"process {each}" for each in self._seen if lives(each)]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                left.append(f"port {self.port}")
        sockets = re.findall(r"host=([^&\s]+)&", self.said)
        left += [folder for folder in sockets if Path(folder.replace("%2F", "/")).exists()]
        return left + [str(left) for name in ("supervisor.lock", "running.json") for left in self.data.rglob(name)]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.returncode is None:
            self.send(signal.SIGKILL)
            await self._process.wait()
        for each in self._seen:
            with suppress(psutil.NoSuchProcess):  # some end with their parent
                each.kill()


def lives(process: psutil.Process) -> bool:
    """Whether a process is still there, and not only waits to be noticed as gone."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def sells(url: str) -> str:
    """Put a show on sale and reserve a seat; the order's address."""
    async with httpx.AsyncClient(base_url=url, timeout=10) as http:
        ticket = await http.post("/api/tickets", json=SHOW, headers=SAM)
        assert ticket.status_code == 201, ticket.text
        order = await http.post("/api/orders", json={"ticket_id": ticket.json()["id"], "quantity": 1}, headers=ADA)
        assert order.status_code == 201, order.text
        return url + order.headers["location"]


async def test_it_greets_with_addresses_that_answer_and_lines_that_work_as_they_are_printed(home: Path) -> None:
    assert shutil.which("curl"), "there is no curl on PATH; install it, on Debian with: apt-get install curl"
    async with Up(home) as up:
        await up.start()
        addresses = re.findall(r"^ +(?:API|Documentation|Health|Metrics) +(\S+)", up.said, re.MULTILINE)
        assert len(addresses) == 4
        async with httpx.AsyncClient() as http:
            assert [(await http.get(address)).status_code for address in addresses] == [200] * 4
        printed = up.said.partition("Try it")[2].partition("Ctrl-C")[0]
        demo, _, lines = printed.partition(":\n")
        listed, shown, order = map(json.loads, (await typed(lines)).splitlines())
        assert (listed["title"], listed["status"]) == ("Opening night", "on_sale")
        assert shown == listed
        assert (order["ticket_id"], order["status"], order["quantity"]) == (listed["id"], "created", 2)
        in_backticks = re.search(r"`(make demo .*)`", demo)
        assert in_backticks, demo
        dry_run = await typed(f"cd {Path(__file__).parents[2]} && {in_backticks[1]} --dry-run --assume-old=install")
        assert any(line.endswith(f"boxoffice demo --data {up.data}") for line in dry_run.splitlines())


async def test_metrics_that_have_a_port_of_their_own_are_where_it_says(home: Path) -> None:
    port = free_port()
    async with Up(home, variables={"BOXOFFICE_METRICS_PORT": str(port)}) as up, httpx.AsyncClient() as http:
        await up.start()
        address = f"http://127.0.0.1:{port}/metrics"
        assert re.findall(r"^ +Metrics +(\S+)", up.said, re.MULTILINE) == [address]
        assert "boxoffice_events_appended_total" in (await http.get(address)).text


async def typed(lines: str) -> str:
    """What lines answer that are typed into a shell, one after the other."""
    shell = await asyncio.create_subprocess_shell(lines, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    said, errors = await asyncio.wait_for(shell.communicate(), SECONDS)
    assert shell.returncode == 0, errors.decode()
    return said.decode()


async def test_data_stays_until_it_is_told_to_start_afresh(home: Path) -> None:
    async with Up(home) as up:
        await up.start()
        order = await sells(up.url)
        await stopped(up, signal.SIGINT)
        await up.start()
        async with httpx.AsyncClient(headers=ADA) as http:
            assert (await http.get(order)).json()["status"] == "created"
        code, said = await boxoffice("up", "--data", str(up.data))
        assert (code, f"at {up.url}" in said) == (1, True), said  # one is enough
        await stopped(up, signal.SIGINT)
    async with Up(home, "--fresh", port=up.port) as up:
        await up.start()
        async with httpx.AsyncClient(headers=ADA) as http:
            assert (await http.get(order)).status_code == 404
            assert (await http.get(f"{up.url}/api/tickets")).json()["items"] == []
        await stopped(up, signal.SIGINT)


async def test_a_listener_from_before_a_fresh_start_is_told_that_the_log_is_another(home: Path) -> None:
    async def news(url: str, count: int, **params: int | str) -> dict[str, Any]:
        """Ada's, once there are so many."""
        async with httpx.AsyncClient(base_url=url, headers=ADA, timeout=10) as http:

            async def unread() -> int:
                return int((await http.get("/api/notifications/inbox")).json()["unread"])

            await eventually(unread, count, SECONDS)
            told: dict[str, Any] = (await http.get("/api/notifications", params=params)).json()
            return told

    async with Up(home) as up:
        await up.start()
        tailing = await asyncio.create_subprocess_exec(
            *(BOXOFFICE, "notifications", "tail", "--url", up.url), stdout=asyncio.subprocess.PIPE
        )
        try:
            for _ in range(2):
                await sells(up.url)
            await said(tailing, "what ada is told", "You hold", "You hold")
            before = await news(up.url, 2, after=0)
            assert len(before["items"]) == 2
            place: dict[str, int | str] = {"after": before["cursor"], "log": before["log"]}
            assert (await news(up.url, 2, **place))["recovered"]
            await stopped(up, signal.SIGINT)
            async with Up(home, "--fresh", port=up.port) as fresh:
                await fresh.start()
                await said(tailing, "is lost; trying again", "connected again", "The log was replaced")
                for _ in range(4):
                    await sells(up.url)
                await said(tailing, *["You hold"] * 4)
                after = await news(up.url, 4, **place)
                assert (after["recovered"], after["items"], after["log"] != before["log"]) == (False, [], True)
                assert (await news(up.url, 4, after=after["cursor"], log=after["log"]))["recovered"]
                await stopped(fresh, signal.SIGINT)
        finally:
            tailing.kill()
            await tailing.wait()


async def said(process: asyncio.subprocess.Process, *lines: str) -> None:
    """Wait for its next lines, which have these in them; of one connection that is lost several may tell."""
    assert process.stdout
    for expected in lines:
        line = (await asyncio.wait_for(process.stdout.readline(), SECONDS)).decode()
        while expected not in line and "is lost" in line:
            line = (await asyncio.wait_for(process.stdout.readline(), SECONDS)).decode()
        assert expected in line


async def stopped(up: Up, by: signal.Signals) -> None:
    """End it in order: exit code 0, everything told, nothing left behind."""
    up.send(by)
    assert await up.ended() == 0, up.said
    told = [up.said.rindex(line) for line in ("services stopped", "postgres stopped", "nats stopped")]
    assert told == sorted(told)
    assert up.left_behind() == []


async def test_a_termination_signal_stops_it_as_control_c_does(home: Path) -> None:
    async with Up(home) as up:
        await up.start()
        await stopped(up, signal.SIGTERM)


async def test_a_folder_that_is_somebody_elses_is_neither_used_nor_deleted(home: Path) -> None:
    theirs = home / "photos"
    theirs.mkdir()
    (theirs / "holiday.jpg").touch()
    for options in ((), ("--fresh",)):
        code, said = await boxoffice("up", "--data", str(theirs), *options)
        assert code == 1
        assert str(theirs) in said
    assert [each.name for each in theirs.iterdir()] == ["holiday.jpg"]


async def test_a_taken_port_is_passed_over_and_it_says_so(home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        async with Up(home, port=taken) as up:
            await up.start()
            told = re.search(rf"port {taken} is taken, so it is (\d+)", up.said)
            assert told, up.said
            await sells(f"http://127.0.0.1:{told[1]}")


async def test_control_c_twice_forces_it_and_it_starts_again_afterwards(home: Path) -> None:
    async with Up(home) as up:
        await up.start()
        order = await sells(up.url)
        async with httpx.AsyncClient(headers=ADA, timeout=30) as http:
            payment = asyncio.create_task(http.post(f"{order}/payment", json={"token": "tok_slow"}))

            async def status() -> str:
                return str((await http.get(order)).json()["status"])

            await eventually(status, "awaiting_payment")  # which takes 3 s, and a stop in order would wait for it
            up.send(signal.SIGINT)
            await up.says("Ctrl-C again to force it")
            assert not payment.done()
            up.send(signal.SIGINT)
            assert await up.ended() == 130
            assert "forced" in up.said
            with pytest.raises(httpx.TransportError):
                await payment

        async def still_there() -> list[str]:
            return [left for left in up.left_behind() if left.startswith(("process", "port"))]

        nothing: list[str] = []
        await eventually(still_there, nothing)
        await up.start()
        async with httpx.AsyncClient(headers=ADA) as http:
            assert (await http.get(order)).status_code == 200
        await stopped(up, signal.SIGINT)


@pytest.mark.parametrize("moment", ["nats", "postgres", "created stream TICKETS"])
async def test_control_c_while_it_starts_is_clean(home: Path, moment: str) -> None:
    async with Up(home) as up:
        await up.start(until=moment)
        up.send(signal.SIGINT)
        assert await up.ended() == 0, up.said
        assert up.left_behind() == []
        assert "Traceback" not in up.said


@pytest.mark.parametrize("imported", ["uvloop", "psutil"])
async def test_control_c_while_it_is_being_imported_ends_it_without_a_word(home: Path, imported: str) -> None:
    presses = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    (home / f"{imported}.py").write_text(presses)  # found before the real one
    assert await boxoffice("up", "--data", str(home / "data"), PYTHONPATH=str(home)) == (130, "")


async def test_a_host_without_an_address_is_told_once_and_for_people(home: Path) -> None:
    async with Up(home, variables={"BOXOFFICE_NATS_URL": "nats://nats.invalid:4222"}) as up:
        await up.start(until="still waiting for nats://nats.invalid:4222")  # after 3 s, and three tries
        assert up.said.count("nats_error") == 1
        assert '"event"' not in up.said
        up.send(signal.SIGINT)
        assert await up.ended() == 0


async def test_control_c_ends_it_while_a_server_does_not_answer(home: Path) -> None:
    async with Up(home) as up:
        await up.start()
        await stopped(up, signal.SIGINT)
        await up.start(until="✓ nats")
        servers: list[psutil.Process] = []

        async def stalled() -> bool:
            servers.extend(each for each in up.family() if each.name() == "postgres")
            for each in servers:
                each.suspend()
            return bool(servers)

        await eventually(stalled, True)
        up.send(signal.SIGINT)
        assert await up.ended() == 0, up.said
        assert up.left_behind() == []
        assert "Traceback" not in up.said


async def test_two_that_start_together_on_one_port_both_open(home: Path) -> None:
    port = free_port()
    for name in ("one", "two"):
        (home / name).mkdir()
    async with Up(home / "one", port=port) as one, Up(home / "two", port=port) as two:
        await asyncio.gather(one.start(), two.start())
        urls = [re.search(r"API +(http://\S+)/api/tickets", up.said) for up in (one, two)]
        found = {url[1] for url in urls if url}
        assert len(found) == 2
        for url in found:
            await sells(url)


async def test_two_on_one_folder_are_one_too_many(home: Path) -> None:
    async with Up(home) as up:
        await up.start(until="✓ nats")
        for options in ((), ("--fresh",)):
            code, said = await boxoffice("up", "--data", str(up.data), *options)
            assert code == 1
            assert "It already runs" in said
        await up.says("Ctrl-C stops it.")
        await sells(up.url)


def test_one_that_only_waits_to_be_noticed_as_gone_does_not_run(home: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    process = psutil.Process(ended.pid)
    Running(ended.pid, process.create_time(), "nats://127.0.0.1:1", "postgresql://").tell(home)
    while process.status() != psutil.STATUS_ZOMBIE:
        os.sched_yield()
    assert find_running(home) is None
    ended.wait()


async def test_nothing_is_changed_at_an_address_that_nobody_named(home: Path) -> None:
    for command in (("migrate",), ("projections", "rebuild", "orders"), ("doctor",)):
        code, said = await boxoffice(*command, "--data", str(home))
        assert code == 1
        assert re.search("nothing runs in", said, re.IGNORECASE)


@pytest.mark.parametrize(("program", "name"), [("nats-server", "nats"), ("postgres", "postgres")])
async def test_a_crashed_server_is_started_again_and_reported(home: Path, program: str, name: str) -> None:
    async with Up(home) as up:
        await up.start()
        order = await sells(up.url)
        up.server(program).send_signal(signal.SIGKILL)
        await up.says(f"{name} ended with -9; starting it again")
        await up.says(f"{name} is back")

        async with httpx.AsyncClient(headers=ADA) as http:

            async def status(path: str) -> int:
                return (await http.get(path)).status_code

            await eventually(lambda: status(f"{up.url}/health/ready"), 200)
            await eventually(lambda: status(order), 200)  # Postgres may lose its last moment; the log gives it back
        await sells(up.url)
        await stopped(up, signal.SIGINT)


async def test_what_a_killed_one_left_behind_does_not_hinder_the_next(home: Path) -> None:
    async with Up(home) as up:
        await up.start()
        order = await sells(up.url)
        up.send(signal.SIGKILL)
        assert await up.ended() == -9
        code, said = await boxoffice("doctor", "--data", str(up.data))
        assert code == 1
        assert "`boxoffice up` was killed here" in said
        await up.start()
        async with httpx.AsyncClient(headers=ADA) as http:
            assert (await http.get(order)).status_code == 200
        await sells(up.url)
        await stopped(up, signal.SIGINT)


async def test_it_uses_servers_that_are_there_and_starts_none(home: Path, settings: Settings) -> None:
    names = {"BOXOFFICE_NATS_URL": settings.nats_url, "BOXOFFICE_DATABASE_URL": settings.database_url}
    async with Up(home, variables=names) as up:
        await up.start()
        await sells(up.url)
        assert [each.name() for each in up.family()] == ["boxoffice"]
        assert settings.nats_url in up.said
        assert sorted(each.name for each in up.data.iterdir()) == ["boxoffice-data", "running.json", "secrets"]
        up.send(signal.SIGINT)
        assert await up.ended() == 0


async def test_it_says_which_servers_it_waits_for(home: Path, settings: Settings) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        nats_url = f"nats://127.0.0.1:{deaf.getsockname()[1]}"
        names = {"BOXOFFICE_NATS_URL": nats_url, "BOXOFFICE_DATABASE_URL": settings.database_url}
        async with Up(home, variables=names) as up:
            await up.start(until=f"still waiting for {nats_url}")
            up.send(signal.SIGINT)
            assert await up.ended() == 0


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("BOXOFFICE_PORT", "abc", "a whole number"),
        ("BOXOFFICE_HOLD_SECONDS", "-1", "at least 1"),
        ("BOXOFFICE_AUTH", "maybe", "one of dev, on"),
        ("BOXOFFICE_DATABASE_URL", "mysql://x", "postgresql://"),
        ("BOXOFFICE_HOST", "0.0.0.0", "BOXOFFICE_AUTH=dev"),  # noqa: S104  # nothing listens there
    ],
)
async def test_a_bad_setting_is_told_before_anything_starts(
    home: Path, variable: str, value: str, allowed: str
) -> None:
    code, said = await boxoffice("up", "--data", str(home / "data"), **{variable: value})
    assert code == 1
    told = next(line for line in said.splitlines() if variable in line)
    assert f"{variable}='{value}'" in told
    assert allowed in told
    assert "Traceback" not in said
    assert "nats" not in said


async def test_a_service_that_is_not_there_is_told_with_those_that_are() -> None:
    code, said = await boxoffice("serve", "nosuch")
    assert code == 2
    assert "nosuch" in said
    assert "tickets, orders, expiration" in said


async def test_a_service_on_a_taken_port_says_which(settings: Settings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, said = await boxoffice("serve", "tickets", "--port", str(port), BOXOFFICE_NATS_URL=settings.nats_url)
    assert code == 1
    assert f"127.0.0.1:{port}" in said
    assert "Traceback" not in said


async def test_to_migrate_again_changes_nothing(settings: Settings) -> None:
    names = {"BOXOFFICE_NATS_URL": settings.nats_url, "BOXOFFICE_DATABASE_URL": settings.database_url}
    code, first = await boxoffice("migrate", **names)
    assert code == 0
    assert "created stream ORDERS" in first
    assert await boxoffice("migrate", **names) == (0, "nothing to change\n")


async def test_a_read_model_is_rebuilt_while_it_is_used(platform: Platform, home: Path) -> None:
    names = {"BOXOFFICE_NATS_URL": platform.settings.nats_url, "BOXOFFICE_DATABASE_URL": platform.settings.database_url}
    async with ServiceProcess("tickets orders", platform.settings, home) as shop:
        order = await sells(shop.url)
        events = (await platform.event_log.end("ORDERS")).sequence
        code, said = await boxoffice("projections", "rebuild", "orders", **names)
        assert code == 0, said
        assert f"rebuilt orders from {events} events" in said
        async with httpx.AsyncClient(headers=ADA) as http:
            assert (await http.get(order)).status_code == 200
        await sells(shop.url)
    code, said = await boxoffice("projections", "rebuild", "nosuch", **names)
    assert code == 2
    assert "tickets, orders" in said


async def test_with_a_provider_people_log_in_with_it_and_nobody_by_their_word(home: Path) -> None:
    port = free_port()
    async with oidc_server(f"http://127.0.0.1:{port}/api/auth/callback/google") as provider:
        variables = {
            "BOXOFFICE_OIDC_CLIENT_ID": provider.client_id,
            "BOXOFFICE_OIDC_CLIENT_SECRET": provider.client_secret,
            "BOXOFFICE_OPERATORS": "ada@example.org",
            "BOXOFFICE_OIDC_ISSUER": provider.issuer,  # where Google is not the one
        }
        async with (
            Up(home, port=port, variables=variables) as up,
            httpx.AsyncClient(base_url=up.url) as browser,
            httpx.AsyncClient(base_url=up.url) as program,
        ):
            await up.start()
            assert f"Shop            {up.url}" in up.said
            assert "dev:" not in up.said
            assert (await program.post("/api/auth/dev", json={"name": "ada"})).status_code == 404
            assert (await program.get("/api/auth/me", headers=ADA)).status_code == 401
            begun = await browser.get("/api/auth/login/google")
            await browser.get(await provider.log_in(begun.headers["location"]))
            me = (await browser.get("/api/auth/me")).json()
            assert (me["name"], me["role"]) == ("Ada Lovelace", "operator")

            csrf = {"X-CSRF-Token": browser.cookies["boxoffice-csrf"]}
            wanted = {"name": "import", "scopes": ["tickets:write"]}
            key = (await browser.post("/api/auth/keys", json=wanted, headers=csrf)).json()["key"]
            program.headers["Authorization"] = f"Bearer {key}"
            listed = await program.post("/api/tickets", json=SHOW)
            assert (listed.status_code, listed.json()["seller_id"]) == (201, me["user_id"])
            assert (await program.get("/api/orders")).status_code == 403


HALF = [
    ("BOXOFFICE_OIDC_CLIENT_SECRET", "BOXOFFICE_OIDC_CLIENT_ID: Required"),
    ("BOXOFFICE_OIDC_CLIENT_ID", "BOXOFFICE_OIDC_CLIENT_SECRET: Required"),
    ("BOXOFFICE_IDENTITY_OIDC_CLIENT_ID", "BOXOFFICE_OIDC_CLIENT_SECRET: Required"),
]


@pytest.mark.parametrize(("variable", "told"), HALF)
async def test_half_a_provider_lets_nobody_in_by_their_word(home: Path, variable: str, told: str) -> None:
    code, said = await boxoffice("up", "--data", str(home / "data"), **{variable: "hunter2"})
    assert (code, told in said, "hunter2" in said, "nats" in said) == (1, True, False, False), said


@pytest.mark.parametrize("variable", ["BOXOFFICE_OIDC_PROVIDERS", "BOXOFFICE_OIDC_PROVIDERS_FILE"])
async def test_where_nobody_can_log_in_it_says_so(home: Path, variable: str) -> None:
    (home / "none").write_text("[]")
    value = str(home / "none") if variable.endswith("_FILE") else "[]"
    async with Up(home, variables={variable: value}) as up, httpx.AsyncClient(base_url=up.url) as http:
        await up.start()
        assert "nobody can log in: no provider is named" in up.said
        assert (await http.get("/api/auth/me", headers=ADA)).status_code == 401


async def test_it_warns_where_everybody_who_reaches_it_is_believed(home: Path) -> None:
    variables = {"BOXOFFICE_AUTH": "dev", "BOXOFFICE_HOST": "0.0.0.0"}  # noqa: S104  # it is what is warned of
    async with Up(home, variables=variables) as up:
        await up.start(until="✓ nats")
        assert "whoever reaches 0.0.0.0 is whoever they say" in up.said
        up.send(signal.SIGINT)
        assert await up.ended() == 0


def test_where_others_come_back_to_from_a_provider_has_to_be_named() -> None:
    provider = ProviderSettings(name="shop", issuer="https://id.example", client_id="a", client_secret="b")  # noqa: S106  # it opens nothing
    everywhere = Settings(host="0.0.0.0")  # noqa: S104  # nothing listens there
    with pytest.raises(BadSetting, match=r"^BOXOFFICE_PUBLIC_URL: Required"):
        warnings_of(everywhere, [provider], believed=False)
    public = msgspec.structs.replace(everywhere, public_url="https://tickets.example.org")
    assert warnings_of(public, [provider], believed=False) == []


async def test_its_servers_know_none_of_its_settings(home: Path) -> None:
    async with Up(home, variables={"BOXOFFICE_WEBHOOK_SECRET": "hunter2" * 5}) as up:
        await up.start()
        for program in ("nats-server", "postgres"):
            given = up.server(program).environ()
            assert "PATH" in given
            assert [name for name in given if name.startswith("BOXOFFICE_")] == []


async def test_it_shows_who_is_refused_but_not_who_has_shown_nothing(home: Path) -> None:
    async with Up(home) as up, httpx.AsyncClient(base_url=up.url) as http:
        await up.start()
        assert (await http.get("/api/orders")).status_code == 401
        assert "refused" not in up.said
        assert (await http.get("/api/orders", headers={"Authorization": "Bearer hunter2"})).status_code == 401
        await up.says("refused")
        evil = {"Host": "evil.example", "Origin": "http://evil.example"}
        answer = await http.post("/api/auth/dev", json={"name": "eve", "role": "operator"}, headers=evil)
        assert (answer.status_code, "evil.example" in answer.text) == (403, True)
        await up.says("/api/auth/dev")
        assert "hunter2" not in up.said


async def test_a_list_of_providers_is_enough_and_whoever_calls_it_otherwise_is_sent_to_its_address(home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        port = free_port(taken + 1)
        url = f"http://127.0.0.1:{port}"
        async with oidc_server(f"{url}/api/auth/callback/shop") as provider:
            more = {"name": "shop", "issuer": provider.issuer, "client_id": provider.client_id}
            variables = {"BOXOFFICE_OIDC_PROVIDERS": json.dumps([{**more, "client_secret": provider.client_secret}])}
            async with Up(home, port=taken, variables=variables) as up, httpx.AsyncClient(base_url=url) as browser:
                await up.start()
                assert f"{url}/api/auth/callback/shop" in up.said  # it is another than one would think
                for path in ("/login", "/login?problem=a%20b", "/api/auth/login/shop?next=/login"):
                    sent = await browser.get(path, headers={"Host": f"localhost:{port}"})
                    assert (sent.status_code, sent.headers["location"], len(sent.cookies)) == (303, url + path, 0)
                assert (await browser.get("/login")).status_code == 200
                begun = await browser.get("/api/auth/login/shop")
                await browser.get(await provider.log_in(begun.headers["location"]))
                assert (await browser.get("/api/auth/me")).json()["name"] == "Ada Lovelace"
