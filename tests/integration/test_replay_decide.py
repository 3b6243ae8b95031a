"""`boxoffice replay decide`: another revision's rules on what was recorded, in a process that reaches nothing."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from signal import Signals
from typing import Any
from uuid import UUID

import msgspec
import psutil  # type: ignore[import-untyped]  # psutil ships no types
import pytest

from common.aggregate import Aggregate
from common.errors import Conflict, Invalid, Unavailable
from common.event_log import Draft
from common.events import BookListing, KindPaused
from common.runtime import Platform
from common.settings import Settings
from services.cli.decide import RULES as RULES_OF_SERVICES
from services.cli.decide import Report, codes, decide_again
from services.cli.decide_worker import Ready, Setup
from services.cli.sandbox import INSTALLED, KEPT, Code, worker
from services.orders.domain import ORDERS, CancelOrder, CompleteOrder, KeepBook, Orders, PlaceOrder, StartPayment
from tests.harness import eventually, logins

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
DEADLINE = NOON + timedelta(minutes=15)
PAYMENT = UUID(int=900)
RULES = "services/orders/domain.py"
FREED = "            seats = -order.quantity\n"
FREEING = "            freed = (order_id,"


class Clone:
    """A clone of this code with revisions of its own."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        for package in ("common", "services"):
            shutil.copytree(INSTALLED / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
        self.git("init", "--quiet")
        self.first = self.commit()

    def git(self, *arguments: str) -> str:
        who = ("-c", "user.name=ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", *who, "-C", str(self.tree), *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def change(self, old: str, new: str, path: str = RULES) -> None:
        """Change a file, and commit nothing."""
        file = self.tree / path
        text = file.read_text()
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path}"
        file.write_text(text.replace(old, new))

    def commit(self) -> str:
        """A revision of the code as it is."""
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "--message", "a revision")
        return self.git("rev-parse", "HEAD")

    def changed(self, old: str, new: str, path: str = RULES) -> str:
        """A revision with that change."""
        self.change(old, new, path)
        return self.commit()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "clone")


def book(number: int) -> str:
    """The subject of a ticket's book."""
    return f"orders.{UUID(int=number)}"


async def sold(orders: Orders, ticket: int, *, reason: Any = None, quantity: int = 2) -> None:
    """Two orders for a ticket of three seats: one that ends for this reason or is paid for, then one for all of it."""
    ticket_id, first, second = UUID(int=ticket), UUID(int=1000 + ticket), UUID(int=2000 + ticket)
    listing = BookListing("Opening night", 2500, "EUR", 3, 4, True, 1)
    await orders.handle(ticket_id, KeepBook(ticket_id, listing, NOON))
    await orders.handle(ticket_id, PlaceOrder(first, "ada", quantity, DEADLINE, NOON))
    if reason:
        await orders.handle(ticket_id, CancelOrder(first, reason, DEADLINE))
        await orders.handle(ticket_id, PlaceOrder(second, "bob", 3, DEADLINE, NOON))
    else:
        await orders.handle(ticket_id, StartPayment(first, PAYMENT, NOON))
        await orders.handle(ticket_id, CompleteOrder(first, PAYMENT, NOON))
        with pytest.raises(Conflict):
            await orders.handle(ticket_id, PlaceOrder(second, "bob", 3, DEADLINE, NOON))


@pytest.fixture
async def history(streams: Platform) -> Platform:
    """Four tickets: an order cancelled by its buyer, one by the seller, one expired, one complete with all seats."""
    orders: Orders = Aggregate(ORDERS, streams.event_log)
    await sold(orders, 1, reason="buyer")
    await sold(orders, 2, reason="seller")
    await sold(orders, 3, reason="expired")
    await sold(orders, 4, quantity=3)
    return streams


async def compared(
    platform: Platform, tree: Path, code: str | None = None, against: str | None = None, **more: Any
) -> Report:
    async with codes(tree, code, against) as (tried, held):
        return await decide_again(platform.event_log, "orders", tried, held, **more)


async def test_the_same_rules_decide_all_that_was_recorded_in_the_same_way(history: Platform, clone: Clone) -> None:
    report = await compared(history, clone.tree)
    assert (report.tried, report.against) == ("the installed code", "the installed code")
    assert (report.aggregates, report.decisions, report.as_recorded, report.differ) == (4, 16, 0, [])
    report = await compared(history, clone.tree, clone.first[:10])
    assert report.tried == f"revision {clone.first[:12]}"
    assert (report.decisions, report.missing, report.mute, report.differ) == (16, [], [], [])


async def test_a_bug_in_evolve_is_found_in_exactly_the_aggregates_that_it_affects(
    history: Platform, clone: Clone
) -> None:
    bad = clone.changed(FREED, '            seats = 0 if event.reason == "seller" else -order.quantity\n')
    report = await compared(history, clone.tree, bad, clone.first)
    assert report.differ == [book(2)]
    (found,) = report.shown
    assert found.first
    assert (found.first.command["type"], found.first.refused) == ("PlaceOrder", "Conflict: Opening night: only 1 left.")
    assert [event["type"] for event in found.first.recorded] == ["order_created"]
    assert found.first.tried == []
    order = f"orders.{UUID(int=2002)}"
    assert [(change.path, change.after) for change in found.state if change.path != order] == [("taken", 2)]
    assert [change.after for change in found.state if change.path == order] == [msgspec.UNSET]


async def test_a_bug_in_evolve_that_no_decision_shows_is_found_in_the_states(history: Platform, clone: Clone) -> None:
    bad = clone.changed('status="complete", closed_at=event.at', 'status="complete", closed_at=order.expires_at')
    report = await compared(history, clone.tree, bad, clone.first)
    assert (report.differ, report.decisions_that_differ) == ([book(4)], 0)
    (change,) = report.shown[0].state
    assert change.path == f"orders.{UUID(int=1004)}.closed_at"
    assert (change.before, change.after) == ("2030-01-01T12:00:00Z", "2030-01-01T12:15:00Z")


async def test_a_bug_in_decide_is_found_in_exactly_the_aggregates_that_it_affects(
    history: Platform, clone: Clone
) -> None:
    clone.change("quantity > listing.max_per_order", "quantity >= listing.max_per_order - 1")
    report = await compared(history, clone.tree)
    assert report.tried == "the installed code, with what is not committed"
    assert report.against == f"revision HEAD ({clone.first[:12]})"
    assert report.differ == [book(1), book(2), book(3), book(4)], "all of which took three at once"
    report = await compared(history, clone.tree, since=14)
    assert report.differ == [book(4)], "only what was decided since"
    report = await compared(history, clone.tree, until=12)
    assert report.differ == [book(1), book(2), book(3)]
    report = await compared(history, clone.tree, aggregate=str(UUID(int=3)), show=0)
    assert (report.aggregates, report.differ, report.shown) == (1, [book(3)], [])


async def test_an_aggregate_that_a_revision_cannot_fold_is_named(history: Platform, clone: Clone) -> None:
    bad = clone.changed(FREED, FREED + '            assert event.reason != "expired", "never"\n')
    report = await compared(history, clone.tree, bad, clone.first)
    assert report.differ == [book(3)]
    ((code, unfolded),) = report.shown[0].unfolded.items()
    assert (code, unfolded.sequence, unfolded.error) == (report.tried, 11, "AssertionError: never")


async def test_of_rules_that_know_no_commands_only_the_states_are_compared(history: Platform, clone: Clone) -> None:
    old = clone.changed("evolve, initial=Book(), asks=asks)", "evolve, initial=Book())")
    report = await compared(history, clone.tree, old, clone.first)
    assert report.mute == ["services.orders.domain:ORDERS"]
    assert (report.decisions, report.as_recorded, report.differ) == (0, 17, [])


async def test_rules_that_a_revision_does_not_have_are_told(streams: Platform, clone: Clone) -> None:
    kind = KindPaused("tickets.create", NOON, "olga", version=1)
    await streams.event_log.append(f"batch.{UUID(int=1)}", [Draft.of(kind)], expected=0)
    old = clone.changed("\nKINDS = ", "\nNO_KINDS = ", "services/batch/domain.py")
    async with codes(clone.tree, old, old) as (tried, held):
        report = await decide_again(streams.event_log, "batch", tried, held)
    assert (report.missing, report.unruled, report.differ) == (["services.batch.domain:KINDS"], 1, [])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def decide(:\n", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
async def test_a_revision_that_does_not_import_says_why(history: Platform, clone: Clone, change: str, why: str) -> None:
    bad = clone.changed("from datetime import datetime\n", "from datetime import datetime\n" + change)
    with pytest.raises(Invalid, match=f"The rules of revision {bad} .* cannot be tried: {why}"):
        await compared(history, clone.tree, bad)


async def test_a_revision_that_ends_its_process_says_so(history: Platform, clone: Clone) -> None:
    gone = 'import os, sys\nprint("out of luck", file=sys.stderr)\nos._exit(9)\n'
    bad = clone.changed("from datetime import datetime\n", "from datetime import datetime\n" + gone)
    with pytest.raises(Invalid, match="cannot be tried: the process has ended: out of luck"):
        await compared(history, clone.tree, bad)


async def test_what_is_no_revision_or_no_clone_is_told(history: Platform, clone: Clone, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="There is no revision 'no-such-thing' in"):
        await compared(history, clone.tree, "no-such-thing")
    with pytest.raises(Invalid, match="There is no revision '--output=x' in"):
        await compared(history, clone.tree, "--output=x")
    with pytest.raises(Invalid, match="is no clone that git can read, so it has no revisions: fatal: not a git"):
        await compared(history, tmp_path, "HEAD")
    clone.git("rm", "-r", "--quiet", "common", "services")
    with pytest.raises(Invalid, match=r"has no code of Boxoffice: fatal: pathspec 'common' did not match"):
        await compared(history, clone.tree, clone.commit())


async def test_an_event_that_a_revision_does_not_know_is_told(history: Platform, clone: Clone) -> None:
    old = clone.changed('tag="order_cancelled"', 'tag="order_ended"', "common/events/orders.py")
    why = r"the event at sequence 3 on orders.* there is no event type 'order_cancelled'.*`--until 2` stops before it"
    with pytest.raises(Invalid, match=why):
        await compared(history, clone.tree, old)
    assert (await compared(history, clone.tree, old, until=2)).differ == []


async def test_a_stream_that_is_missing_is_told(streams: Platform, clone: Clone) -> None:
    await streams.client.jetstream().delete_stream("ORDERS")
    with pytest.raises(Unavailable, match=r"Stream ORDERS: stream not found\. Has `boxoffice migrate` run\?"):
        await compared(streams, clone.tree)


async def test_an_aggregate_of_which_there_is_nothing_is_told(history: Platform, clone: Clone) -> None:
    with pytest.raises(Invalid, match="Stream ORDERS has nothing of 00000000-0000-0000-0000-000000000009 from 1 to 17"):
        await compared(history, clone.tree, aggregate=str(UUID(int=9)))


REACHING = {
    "connect": "import socket; socket.create_connection(('127.0.0.1', {port}))",
    "run": "import subprocess; subprocess.run(['true'])",
    "shell": "import os; os.system('true')",
    "write": "open('{file}', 'w').close()",
    "remove": "import os; os.remove(__file__)",
}


@pytest.mark.parametrize("deed", REACHING)
async def test_rules_reach_nothing(history: Platform, clone: Clone, tmp_path: Path, deed: str) -> None:
    file = tmp_path / "written"
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(0)
        does = REACHING[deed].format(port=door.getsockname()[1], file=file)
        bad = clone.changed(FREEING, f"            {does}\n{FREEING}")
        report = await compared(history, clone.tree, bad, clone.first)
        with pytest.raises(BlockingIOError):
            door.accept()
    assert not file.exists()
    assert report.differ == [book(1), book(2), book(3)]
    assert report.shown[0].first
    assert "decide fails: PermissionError: rules that are tried may not do this" in report.shown[0].first.refused


@pytest.mark.parametrize("service", RULES_OF_SERVICES)
async def test_the_rules_of_every_service_load_in_a_sandbox(service: str) -> None:
    _, rules = RULES_OF_SERVICES[service]
    async with worker(Code(INSTALLED, "this")) as made:
        assert await made.set_up(Setup(rules, 0, folds=True, tries=True)) == Ready([], [])


async def test_a_decision_is_not_cut_in_two(history: Platform, clone: Clone) -> None:
    for until in (16, 17):
        report = await compared(history, clone.tree, until=until, since=16)
        assert (report.until, report.decisions, report.differ) == (17, 1, [])


async def test_a_sandbox_is_given_no_address_and_no_password(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BOXOFFICE_NATS_URL", "NATS_PASSWORD_ORDERS", "PGPASSWORD", "BOXOFFICE_API_KEY"):
        monkeypatch.setenv(name, "secret")
    async with worker(Code(clone.tree, "this")) as made:
        (child,) = (each for each in psutil.Process().children() if "decide_worker" in each.cmdline()[-1])
        assert set(child.environ()) <= {"PYTHONPATH", *KEPT}
        assert made.code.name == "this"
    assert not child.is_running()


# The command


def command(platform: Platform, tree: Path, *arguments: str) -> tuple[Sequence[str], dict[str, str]]:
    """`boxoffice` of the code in a folder, as an operator runs it; and its environment."""
    settings = Settings(nats_url=platform.settings.nats_url)
    environment = {**os.environ, **logins(settings), "PYTHONPATH": str(tree), "COLUMNS": "200"}
    return (sys.executable, "-P", "-m", "services.cli.main", *arguments), environment


async def printed(platform: Platform, tree: Path, *arguments: str) -> tuple[int, str, str]:
    """Its exit code, and what it prints."""
    line, environment = command(platform, tree, *arguments)
    process = await asyncio.create_subprocess_exec(
        *line, env=environment, cwd=tree, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def test_the_command_shows_a_diff_for_each_aggregate_and_ends_as_diff_does(
    history: Platform, clone: Clone
) -> None:
    code, said, _ = await printed(history, clone.tree, "replay", "decide", "orders")
    assert (code, "16 decisions of 4 aggregates, made again: none is another" in said) == (0, True), said
    clone.change(FREED, '            seats = 0 if event.reason == "seller" else -order.quantity\n')
    code, said, _ = await printed(history, clone.tree, "replay", "decide", "orders", "--since", "2026-01-01")
    assert code == 1
    shown = [line.strip() for line in said.splitlines()]
    begin = shown.index(book(2))
    assert shown[begin + 1].startswith("8 20")
    short = f"…{str(UUID(int=2002))[-8:]}"
    assert f"PlaceOrder buyer_id=bob order_id={short} quantity=3" in shown[begin + 1]
    assert shown[begin + 2].startswith(f"- order_created buyer_id=bob order_id={short}")
    assert shown[begin + 3] == "+ Conflict: Opening night: only 1 left."
    assert "~ taken 3 → 2" in shown
    assert "16 decisions of 4 aggregates, made again: 1 is another; 1 aggregate ends differently" in shown
    assert "What was refused has left no event, and was not asked again." in shown


async def test_the_command_tells_programs_in_json(history: Platform, clone: Clone) -> None:
    bad = clone.changed("quantity > listing.max_per_order", "quantity >= 3")
    arguments = ("replay", "decide", "orders", "--json", "--code", bad, "--against", "HEAD~1", "--show", "1")
    code, said, _ = await printed(history, clone.tree, *arguments)
    report = msgspec.json.decode(said)
    assert (code, report["differ"]) == (1, [book(1), book(2), book(3), book(4)])
    assert [each["subject"] for each in report["shown"]] == [book(1)]
    assert report["shown"][0]["first"]["sequence"] == 4


async def test_the_command_says_in_a_line_what_is_wrong(history: Platform, clone: Clone) -> None:
    code, said, error = await printed(history, clone.tree, "replay", "decide", "orders", "--code", "nowhere")
    assert (code, "There is no revision 'nowhere'" in error) == (1, True), said + error
    code, _, error = await printed(history, clone.tree, "replay", "decide", "expiration")
    assert (code, "'expiration' is not one of" in error) == (2, True), error


async def test_a_decision_of_the_log_is_written_as_a_test(history: Platform, clone: Clone) -> None:
    code, said, _ = await printed(history, clone.tree, "events", "pytest", "orders", str(UUID(int=2)), "--at", "7")
    assert code == 0
    assert said.startswith(f'"""What {book(2)} decided at sequence 7.\n')
    assert f'        CancelOrder(\n            order_id=UUID("{UUID(int=1002)}"),\n' in said
    code, said, _ = await printed(history, clone.tree, "events", "pytest", book(2), "--recorded", "-o", "test_it.py")
    assert (code, said) == (0, "wrote test_it.py: it passes by today's rules\n")
    code, _, error = await printed(history, clone.tree, "events", "pytest", "orders", str(UUID(int=9)))
    assert (code, f"Nothing in ORDERS is or names {UUID(int=9)}." in error) == (1, True), error
    code, said, _ = await printed(history, clone.tree, "events", "pytest", str(UUID(int=1002)))
    assert (code, said.startswith(f'"""What {book(2)} decided at sequence 7.')) == (0, True), "the last of that order"


def unpacked(folder: Path) -> list[Path]:
    """What is left there of revisions."""
    return list(folder.glob("boxoffice-revisions-*"))


@pytest.mark.parametrize("signal", [Signals.SIGTERM, Signals.SIGINT, Signals.SIGKILL], ids=lambda signal: signal.name)
async def test_nothing_is_left_when_the_command_is_ended(
    history: Platform, clone: Clone, tmp_path: Path, signal: Signals
) -> None:
    begin = "def decide(command: OrderCommand, book: Book) -> list[BookEvent]:\n"
    stuck = clone.changed(begin, begin + "    while True:\n        pass\n")
    line, environment = command(history, clone.tree, "replay", "decide", "orders", "--code", stuck)
    environment["TMPDIR"] = str(tmp_path)
    process = await asyncio.create_subprocess_exec(*line, env=environment, stdout=asyncio.subprocess.DEVNULL)

    async def busy() -> int:
        with suppress(psutil.NoSuchProcess):  # git, which has just unpacked it
            return sum(each.cpu_times().user > 1 for each in psutil.Process(process.pid).children())
        return 0

    await eventually(busy, 1)
    sandboxes = psutil.Process(process.pid).children()
    assert unpacked(tmp_path)
    process.send_signal(signal)
    await process.wait()

    async def left() -> int:
        return sum(each.is_running() for each in sandboxes)

    await eventually(left, 0)
    assert signal == Signals.SIGKILL or not unpacked(tmp_path)
