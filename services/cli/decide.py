"""`boxoffice replay decide`: rules run again over recorded history, and what would have ended differently."""

import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click
from rich.console import Console
from rich.text import Text

from common.errors import Invalid
from common.telemetry import configure_logging
from services.cli.base import MOMENT, console, counted, in_folder, progress_bars, run, settings_here

if TYPE_CHECKING:
    from common.event_log import JetStreamLog, Stored
    from services.cli.decide_worker import Difference, Finding, Outcome, Row, Unfolded
    from services.cli.sandbox import Code, Worker
    from services.history.timeline import Change

RULES: Mapping[str, tuple[str, Sequence[str]]] = {
    "tickets": ("TICKETS", ["services.tickets.domain:TICKETS"]),
    "orders": ("ORDERS", ["services.orders.domain:ORDERS", "services.orders.domain:ORDER_REQUESTS"]),
    "batch": (
        "BATCH",
        [
            *("services.batch.domain:BATCHES", "services.batch.domain:WORKS", "services.batch.domain:KINDS"),
            *("services.batch.domain:OPERATION_REQUESTS", "services.batch.templates:TEMPLATES"),
        ],
    ),
    "notification": (
        "NOTIFICATIONS",
        [
            "services.notification.domain:INBOXES_DECIDER",
            *("services.notification.webhooks:WEBHOOKS", "services.notification.webhooks:DELIVERIES"),
        ],
    ),
    "identity": (
        "IDENTITY",
        [f"services.identity.domain:{name}" for name in ("USERS", "SESSIONS", "KEYRINGS", "KEYS")],
    ),
    "history": ("REPAIRS", ["services.history.domain:REPAIRS"]),
}
"""The stream of each service that decides, and where its rules are."""

NAMED = 100
"""Aggregates at most that are only named, beside those that are told in full."""


class Aggregate(msgspec.Struct, frozen=True):
    """An aggregate that ends differently. `first`: of its decisions that differ; `differing`: how many do.

    `unfolded`: by the names of the codes whose `evolve` fails on it. `state`: how what is recorded would end instead.
    """

    subject: str
    first: "Difference | None"
    differing: int
    unfolded: "Mapping[str, Unfolded]"
    state: "Sequence[Change]"


class Report(msgspec.Struct, frozen=True):
    """What came of it. `differ`: the subjects of all aggregates that do, of which `shown` are told in full.

    `after` and `until`: between which sequences was decided again. `as_recorded`: events taken as they stand, as they
    do not tell what asked for them. `unruled`: events of which the tried code has no rules; `missing` and `mute`: rules
    that it does not have, and those of which it does not know the commands, so that only states are compared.
    """

    stream: str
    after: int
    until: int
    tried: str
    against: str
    aggregates: int
    decisions: int
    as_recorded: int
    unruled: int
    missing: Sequence[str]
    mute: Sequence[str]
    decisions_that_differ: int
    differ: Sequence[str]
    shown: Sequence[Aggregate]


@asynccontextmanager
async def codes(tree: Path, code: str | None, against: str | None) -> "AsyncIterator[tuple[Code, Code]]":
    """The code to try and the code to hold it against, of the packages in `tree`. Raises Invalid, Unavailable."""
    from services.cli.sandbox import Code, is_changed, unpacked

    changed = await is_changed(tree)
    installed = Code(tree, "the installed code, with what is not committed" if changed else "the installed code")
    if code is None and against is None and changed:
        against = "HEAD"
    with tempfile.TemporaryDirectory(prefix="boxoffice-revisions-") as folder:
        tried = await unpacked(code, tree, Path(folder)) if code else installed
        yield tried, await unpacked(against, tree, Path(folder)) if against else installed


async def decide_again(
    log: "JetStreamLog",
    service: str,
    tried: "Code",
    against: "Code",
    *,
    since: datetime | int | None = None,
    until: datetime | int | None = None,
    aggregate: str = "",
    show: int = 10,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Report:
    """Run the rules of `tried` over what a service has recorded, and compare with what the rules of `against` fold.

    `since` and `until`: times, or sequences of the service's stream, both included; what is before is folded only.
    `aggregate`: the subject or id of the only one that is looked at. `show`: how many are told in full.
    Raises Invalid for rules that cannot be run, Unavailable.
    """
    from services.cli.decide_worker import Setup
    from services.cli.sandbox import worker

    stream, rules = RULES[service]
    end = (await log.end(stream)).sequence
    after = await up_to(log, stream, since, 0) if not isinstance(since, int) else max(0, since - 1)
    last = await whole(log, stream, await up_to(log, stream, until, end), end)
    if after >= last < end:
        raise Invalid(f"since: That is after `until`, where {stream} has come to {last}.", field="since")
    both = tried.tree == against.tree
    async with AsyncExitStack() as stack:
        trying = await stack.enter_async_context(worker(tried))
        folding = trying if both else await stack.enter_async_context(worker(against))
        ready = await trying.set_up(Setup(rules, after, folds=both, tries=True))
        if folding is not trying:
            await folding.set_up(Setup(rules, after, folds=True, tries=False))
        workers = {trying, folding}
        async for place, rows in rows_of(log, stream, last, aggregate):
            for each in workers if rows else ():
                await each.send(rows)
            progress(stream, place, last)
        outcome = await trying.outcome()
        folded = outcome if folding is trying else await folding.outcome()
        if aggregate and not outcome.aggregates + outcome.unruled:
            raise Invalid(f"Stream {stream} has nothing of {aggregate} from {after + 1} to {last}.")
        found = list(differing(outcome, folded))
        shown = await told_in_full(found[:show], trying, folding)
    return Report(
        stream,
        after,
        last,
        tried.name,
        against.name,
        outcome.aggregates,
        outcome.decisions,
        outcome.as_recorded,
        outcome.unruled,
        ready.missing,
        ready.mute,
        sum(finding.differing for finding, _ in found),
        [finding.subject for finding, _ in found],
        shown,
    )


async def subject_of(log: "JetStreamLog", service: str, wanted: str) -> str:
    """The aggregate that is meant, or that holds what has this id. Raises Invalid, NotFound, Unavailable."""
    from services.cli.system import DECIDERS
    from services.history.finding import find

    return (await find(log, DECIDERS, wanted, service)).events[0].subject


async def up_to(log: "JetStreamLog", stream: str, moment: datetime | int | None, otherwise: int) -> int:
    """The last sequence before a time, or the sequence itself."""
    if isinstance(moment, datetime):
        return await log.sequence_before(stream, moment)
    return otherwise if moment is None else moment


async def whole(log: "JetStreamLog", stream: str, last: int, end: int) -> int:
    """Where the decision ends that made the event at `last`: it is not cut in two."""
    there = await log.stored(stream, last) if 0 < last < end else None
    while there and last < end and (after := await log.stored(stream, last + 1)):
        if (after.subject, after.headers.get("causation-id")) != (there.subject, there.headers.get("causation-id")):
            break
        last += 1
    return min(last, end)


async def rows_of(
    log: "JetStreamLog", stream: str, last: int, aggregate: str
) -> "AsyncIterator[tuple[int, Sequence[Row]]]":
    """What is stored up to `last`, of all aggregates or of one, and how far that is."""
    async with aclosing(log.scan(stream, 0, until=last)) as pages:
        async for page in pages:
            yield page[-1].sequence, [row_of(each) for each in page if each.subject.endswith(aggregate)]


def row_of(stored: "Stored") -> "Row":
    """An event as a worker is handed it."""
    told = stored.headers.get
    envelope = (told("ce-type", ""), told("ce-time", ""), told("causation-id", ""))
    return (stored.sequence, stored.subject, *envelope, stored.body)


def differing(tried: "Outcome", folded: "Outcome") -> "Iterator[tuple[Finding, Finding]]":
    """What is found of each aggregate that differs: by the code that is tried, and by the one that folds the record."""
    other = {finding.subject: finding for finding in folded.findings}
    for finding in tried.findings:
        record = other.get(finding.subject, finding)
        if finding.differing or finding.unfolded or record.unfolded or finding.tried != record.recorded:
            yield finding, record


async def told_in_full(
    found: "Sequence[tuple[Finding, Finding]]", trying: "Worker", folding: "Worker"
) -> Sequence[Aggregate]:
    """The aggregates with the differences of their states."""
    from services.history.timeline import changes

    subjects = [finding.subject for finding, _ in found]
    would_be = (await trying.states(subjects)).tried
    was = (await folding.states(subjects)).recorded
    shown = []
    for finding, record in found:
        subject, sides = finding.subject, ((trying, finding), (folding, record))
        unfolded = {each.code.name: side.unfolded for each, side in sides if side.unfolded}
        ends: Sequence[Change] = ()
        if subject in was and subject in would_be:
            ends = list(changes(msgspec.json.decode(was[subject]), msgspec.json.decode(would_be[subject])))
        shown.append(Aggregate(subject, finding.first, finding.differing, unfolded, ends))
    return shown


def tell(report: Report, to: Console) -> None:
    """The report for people: each aggregate that differs, as a diff; then what was compared."""
    for each in report.shown:
        for line in lines_of(each):
            to.print(line, soft_wrap=True)
    others = report.differ[len(report.shown) :]
    for subject in others[:NAMED]:
        to.print(Text(subject, "bold"), soft_wrap=True)
    if more := len(others[NAMED:]):
        to.print(f"and {counted(more, 'other')}; --json names them all")
    for text in summary(report):
        to.print(Text(text), soft_wrap=True)


def lines_of(each: Aggregate) -> Iterator[Text]:
    """What is told of an aggregate that differs."""
    from services.cli.looking import change_of, facts_of

    def line_of(told: Mapping[str, Any]) -> str:
        return " ".join([str(told["type"]), *facts_of(told)])

    yield Text(each.subject, "bold")
    for name, unfolded in each.unfolded.items():
        yield Text(f"  does not fold by {name}: {unfolded.error}, at sequence {unfolded.sequence}", "red")
    if first := each.first:
        yield Text(f"  {first.sequence} {first.time[:19]}Z  {line_of(first.command)}")
        for event in first.recorded:
            yield Text(f"  - {line_of(event)}", "red")
        for event in first.tried:
            yield Text(f"  + {line_of(event)}", "green")
        if not first.tried:
            yield Text(f"  + {first.refused or 'no event'}", "green")
        if (more := each.differing - 1) > 0:
            yield Text(f"  and {counted(more, 'decision')} after it")
    for change in each.state:
        yield change_of(change)


def summary(report: Report) -> Iterator[str]:
    """What was compared, and what could not be."""
    held = "itself" if report.against == report.tried else report.against
    others, ends = report.decisions_that_differ, len(report.differ)
    came = f"{others:,} {'is' if others == 1 else 'are'} another" if others else "none is another"
    if report.after >= report.until:
        yield f"{report.stream} has nothing since then; it ends at {report.until}."
        return
    yield f"{report.stream} {report.after + 1} to {report.until}: {report.tried}, held against {held}"
    yield (
        f"{counted(report.decisions, 'decision')} of {counted(report.aggregates, 'aggregate')}, made again: {came}"
        + (f"; {counted(ends, 'aggregate')} {'ends' if ends == 1 else 'end'} differently" if ends else "")
    )
    yield "What was refused has left no event, and was not asked again."
    if report.as_recorded:
        yield f"{counted(report.as_recorded, 'event')} taken as recorded: what asked for them is not told by them."
    if report.mute:
        yield f"Only states were compared, as no commands are known: {', '.join(report.mute)}."
    if report.missing:
        yield f"Not in {report.tried}: {', '.join(report.missing)} ({counted(report.unruled, 'event')})."


@click.command()
@click.argument("service", type=click.Choice(list(RULES)))
@click.option(
    "--since",
    type=MOMENT,
    help="Decide again from then on, a time or a sequence; what was before is folded only.  [default: the beginning]",
)
@click.option("--until", type=MOMENT, help="Stop there.  [default: now]")
@click.option("--code", metavar="REVISION", help="The rules to try, of git.  [default: the installed code]")
@click.option(
    "--against",
    metavar="REVISION",
    help="The rules that fold what is recorded.  [default: the installed code; HEAD, if that is tried and differs]",
)
@click.option("--aggregate", metavar="ID", help="Only this one; the id of an order means its book.")
@click.option("--show", type=click.IntRange(0), default=10, show_default=True, help="How many are told in full.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@in_folder
def decide(
    service: str,
    since: datetime | int | None,
    until: datetime | int | None,
    code: str | None,
    against: str | None,
    aggregate: str | None,
    show: int,
    as_json: bool,
    data: Path,
) -> None:
    """Run the rules of a SERVICE again over its history, and tell what would have ended differently.

    Exit code 1 if anything would. Nothing is published: the rules run in a process that can reach no server.
    """
    from common.runtime import connect
    from services.cli.sandbox import INSTALLED

    configure_logging("warning")
    settings = settings_here(data)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was unpacked is removed

    async def compare(progress: Callable[[str, int, int], None]) -> Report:
        async with codes(INSTALLED, code, against) as (tried, held), connect(settings, "replay decide") as platform:
            only = await subject_of(platform.event_log, service, aggregate) if aggregate else ""
            return await decide_again(
                *(platform.event_log, service, tried, held),
                since=since,
                until=until,
                aggregate=only,
                show=show,
                progress=progress,
            )

    if as_json:
        report = run(compare(lambda *_: None))
        click.echo(msgspec.json.encode(report))
    else:
        with progress_bars(service) as progress:
            report = run(compare(progress))
        tell(report, console)
    if report.differ:
        sys.exit(1)
