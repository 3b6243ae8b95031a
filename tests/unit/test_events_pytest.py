"""`boxoffice events pytest`: a history becomes a test that fails until somebody says what should have happened."""

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, settings
from hypothesis import given as drawn

from common.aggregate import Aggregate, Decider
from common.errors import Invalid, NotFound
from common.event_log import Draft, Recorded
from common.events import BookListing, ExpirationCompleted
from common.memory_log import MemoryLog
from services.cli.given_when_then import decision_in, module_of, outlook
from services.cli.sandbox import INSTALLED
from services.cli.system import DECIDERS
from services.orders.domain import (
    ORDERS,
    CompleteOrder,
    KeepBook,
    OrderCommand,
    Orders,
    PlaceOrder,
    StartPayment,
)
from tests.commands import NOON, Decision, commands_of, played

TICKET, FIRST, SECOND, CARD = (UUID(int=number) for number in range(1, 5))
SUBJECT = f"orders.{TICKET}"
DEADLINE = NOON + timedelta(minutes=15, microseconds=1)
LISTING = BookListing('O\'Neill: "Opening" night', 2500, "EUR", 2, 4, True, 1)
SALE: Sequence[OrderCommand] = (
    KeepBook(TICKET, LISTING, NOON),
    PlaceOrder(FIRST, "ada", 2, DEADLINE, NOON),
    StartPayment(FIRST, CARD, NOON),
    CompleteOrder(FIRST, CARD, NOON),
)


@pytest.fixture
async def sale() -> MemoryLog:
    """Two seats, sold to Ada: five events of four decisions."""
    log = MemoryLog()
    orders: Orders = Aggregate(ORDERS, log)
    for command in SALE:
        await orders.handle(TICKET, command)
    return log


def run(test: str, folder: Path) -> tuple[int, str]:
    """What pytest says of a module that was written."""
    file = folder / "test_written.py"
    file.write_text(test)
    line = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "-c", os.devnull)
    environment = {**os.environ, "PYTHONPATH": str(INSTALLED)}
    done = subprocess.run([*line, str(file)], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout


def unformatted(folder: Path) -> str:
    """What the formatter and the linter would change in modules there."""
    said = ""
    for deed in (("format", "--diff"), ("check", "--quiet")):
        line = (sys.executable, "-m", "ruff", *deed, "--no-cache", "--config", "pyproject.toml", str(folder))
        done = subprocess.run(line, cwd=INSTALLED, capture_output=True, text=True)
        said += done.stdout + done.stderr if done.returncode else ""
    return said


async def test_a_written_test_fails_until_somebody_says_what_should_follow(sale: MemoryLog, tmp_path: Path) -> None:
    decision = decision_in(await sale.read(SUBJECT), None)
    assert (decision.sequence, len(decision.before), decision.command) == (4, 3, SALE[-1])
    test = module_of(decision, recorded=False)
    code, said = run(test, tmp_path)
    assert (code, "FAILED test_written.py::test_orders_at_sequence_4 - AssertionError" in said) == (1, True), said
    assert outlook(decision, recorded=False) == "it fails by today's rules"
    assert unformatted(tmp_path) == ""
    assert "    # recorded was:\n    # OrderCompleted(\n" in test


async def test_a_written_test_with_what_was_recorded_passes(sale: MemoryLog, tmp_path: Path) -> None:
    decision = decision_in(await sale.read(SUBJECT), 5)
    test = module_of(decision, recorded=True)
    code, said = run(test, tmp_path)
    assert (code, "1 passed" in said) == (0, True), said
    assert outlook(decision, recorded=True) == "it passes by today's rules"
    assert unformatted(tmp_path) == ""
    assert "OrderCompleted" in test
    assert "BookSoldOut" in test, "it is of the same decision, whichever of its events is named"


async def test_a_sequence_names_the_decision_that_is_asked_about(sale: MemoryLog) -> None:
    decision = decision_in(await sale.read(SUBJECT), 2)
    assert (decision.sequence, len(decision.before), decision.command) == (2, 1, SALE[1])
    with pytest.raises(NotFound, match=f"There is no event of {SUBJECT} at sequence 9; its 5 are from 1 to 5"):
        decision_in(await sale.read(SUBJECT), 9)


async def test_what_is_no_history_of_rules_is_told(sale: MemoryLog) -> None:
    expired = ExpirationCompleted(FIRST, TICKET, NOON, NOON)
    await sale.append(f"expiration.{FIRST}", [Draft.of(expired)], expected=0)
    with pytest.raises(NotFound, match=f"No rules are known for expiration.{FIRST}"):
        decision_in(await sale.read(f"expiration.{FIRST}"), None)


async def test_an_event_that_does_not_tell_its_command_is_told(sale: MemoryLog) -> None:
    sold_out = (await sale.read(SUBJECT))[-1].event
    await sale.append(SUBJECT, [Draft.of(sold_out)], expected=5)
    with pytest.raises(Invalid, match="What asked for book_sold_out at sequence 6 is not told by it; take another"):
        decision_in(await sale.read(SUBJECT), None)
    assert decision_in(await sale.read(SUBJECT), 5).command == SALE[-1]


def logged(decider: Decider[Any, Any, Any], decisions: Sequence[Decision]) -> list[Recorded]:
    """Decisions as a log has them, each with a cause of its own."""
    subject = f"{decider.name}.{TICKET}"
    events = [
        (event, {"correlation-id": "", "causation-id": str(n)}) for n, made in enumerate(decisions) for event in made
    ]
    return [Recorded(subject, sequence, *told) for sequence, told in enumerate(events, start=1)]


@pytest.mark.parametrize("decider", DECIDERS, ids=[f"{n}-{decider.name}" for n, decider in enumerate(DECIDERS)])
def test_any_history_becomes_a_test_that_is_formatted_and_passes_as_recorded(
    decider: Decider[Any, Any, Any], tmp_path: Path
) -> None:
    @settings(max_examples=25, deadline=None)
    @drawn(commands_of(decider))
    def write(commands: list[Any]) -> None:
        assume(decisions := played(decider, commands))
        try:
            decision = decision_in(logged(decider, decisions), None)
        except Invalid:
            return  # its last event does not tell what asked for it
        for recorded in (True, False):
            test = module_of(decision, recorded=recorded)
            (tmp_path / f"test_{blake2b(test.encode()).hexdigest()[:16]}.py").write_text(test)
            written: dict[str, Any] = {}
            exec(test, written)  # noqa: S102 (it was written here)
            (given_when_then,) = (each for name, each in written.items() if name.startswith("test_"))
            if recorded:
                given_when_then()
            else:
                with pytest.raises(AssertionError):
                    given_when_then()

    write()
    assert any(tmp_path.iterdir())
    assert unformatted(tmp_path) == ""
