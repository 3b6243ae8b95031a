"""Spans: none where nobody collects them, the right ones where somebody does, and nobody is held up by either."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import pytest
import structlog.testing
from litestar.testing import AsyncTestClient

from common.errors import NotFound, Unavailable
from common.event_log import Recorded
from common.http import create_app
from common.memory_log import MemoryLog
from common.otlp import done_within, exported
from common.projector import Projector
from common.settings import BadSetting, Settings, load
from common.telemetry import Cause, cause, current_cause
from common.tracing import LINKS, NOTHING, Tracers, acting_as, collecting, is_seen, span
from services.orders.read_model import READ_MODEL
from tests.collector import Collector
from tests.facts import draft
from tests.harness import eventually

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector() as collector:
        yield collector


@contextmanager
def caused_by(why: Cause) -> Iterator[None]:
    """What is done in here has that cause."""
    before = cause.set(why)
    try:
        yield
    finally:
        cause.reset(before)


@asynccontextmanager
async def tracing(collector: Collector, ratio: float = 1) -> AsyncIterator[Tracers]:
    """Spans are sent to it until here."""
    async with collecting(Settings(otlp_endpoint=collector.url, trace_ratio=ratio)) as tracers:
        assert tracers
        with acting_as("orders", tracers):
            yield tracers


IMPORTED = """
import asyncio, sys
import services.cli.system
from common.settings import Settings
from common.tracing import collecting

async def main():
    async with collecting(Settings()) as tracers:
        assert tracers is None

asyncio.run(main())
print([name for name in sys.modules if name.startswith(("opentelemetry", "google", "requests"))])
"""


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    told = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_without_a_collector_there_is_one_span_for_all_and_the_cause_stays_as_it_came() -> None:
    with caused_by(Cause("the conversation", "the request", "what somebody sent")), span("x") as made:
        assert made is NOTHING
        assert current_cause().traceparent == "what somebody sent"


async def test_a_span_is_the_parent_of_what_is_done_in_it(collector: Collector) -> None:
    async with tracing(collector):
        with caused_by(Cause("the conversation", "the request", TRACEPARENT)):
            with span("outer", "server", {"boxoffice.n": 1}), span("inner"):
                assert current_cause().correlation_id == "the conversation"
            assert current_cause().traceparent == TRACEPARENT
    inner, outer = collector.spans
    assert (outer.name, outer.trace, outer.parent, outer.told) == ("outer", TRACE, PARENT, {"boxoffice.n": 1})
    assert (inner.name, inner.trace, inner.parent) == ("inner", TRACE, outer.id)


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        "-",
        "nonsense",
        f"00-{TRACE}-{PARENT}",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE.upper()}-{PARENT}-01",
        "x" * 100_000,
        "\N{SNOWMAN}" * 55,
    ],
)
async def test_what_is_no_traceparent_begins_a_trace_of_its_own(collector: Collector, traceparent: str | None) -> None:
    async with tracing(collector):
        with caused_by(Cause("c", "r", traceparent)), span("x", links=[traceparent or ""]):
            pass
    (seen,) = collector.spans
    assert (seen.parent, seen.links) == ("", ())
    assert seen.trace != TRACE


async def test_of_traces_that_begin_here_the_ratio_decides_of_others_whoever_began_them(collector: Collector) -> None:
    async with tracing(collector, ratio=0):
        with span("begun here") as made:
            assert not made.recording
            told = current_cause().traceparent or ""
            assert not is_seen(told)  # so nobody who comes after this one makes a span of what is a part of it
            with span("a part of it"):
                assert (current_cause().traceparent or "").split("-")[1] == told.split("-")[1]
        with span("begun elsewhere", traceparent=TRACEPARENT):
            pass
        with span("not wanted elsewhere", traceparent=TRACEPARENT[:-1] + "0"):
            pass
    assert [seen.name for seen in collector.spans] == ["begun elsewhere"]


async def test_spans_say_which_service_of_the_process_they_are_of(collector: Collector) -> None:
    async with tracing(collector) as tracers:
        with acting_as("tickets", tracers), span("there"):
            pass
        with span("here"):
            pass
    assert {(seen.service, seen.name) for seen in collector.spans} == {
        ("boxoffice-tickets", "there"),
        ("boxoffice-orders", "here"),
    }
    assert all(seen.resource["service.instance.id"] for seen in collector.spans)


async def test_of_an_error_only_its_kind_is_told(collector: Collector) -> None:
    async with tracing(collector):
        for error in (ValueError("secret"), NotFound("secret"), Unavailable("secret")):
            with pytest.raises(type(error)), span("x"):
                raise error
    assert [(seen.told["error.type"], seen.failed) for seen in collector.spans] == [
        ("ValueError", True),
        ("NotFound", False),  # an answer like others
        ("Unavailable", True),
    ]
    assert "secret" not in repr(collector.spans)


async def test_what_is_told_is_bounded(collector: Collector) -> None:
    async with tracing(collector):
        others = [f"00-{TRACE}-{n:016x}-01" for n in range(1, 2 * LINKS)]
        with span("x", told={f"n{n}": "y" * 1000 for n in range(100)}, links=others):
            pass
    (seen,) = collector.spans
    assert len(seen.links) == LINKS
    assert len(seen.told) == 16
    assert all(len(value) == 200 for value in seen.told.values())


async def test_a_request_is_a_span_named_by_its_route(collector: Collector) -> None:
    async with tracing(collector) as tracers, AsyncTestClient(create_app([], Settings(), tracers=tracers)) as client:
        await client.get("/api/openapi.json?secret=1", headers={"traceparent": TRACEPARENT})
        await client.get("/nowhere/secret")
        await client.request("SECRET", "/nowhere")
        await client.get("/health/live")
        await client.get("/metrics")
    assert [(seen.name, seen.told["http.response.status_code"]) for seen in collector.spans] == [
        ("GET /api/openapi.json", 200),
        ("GET unmatched", 404),
        ("_OTHER unmatched", 404),
    ]
    assert collector.spans[0].parent == PARENT
    assert "secret" not in repr(collector.spans).lower()


def recorded(count: int, flags: str) -> Sequence[Recorded]:
    """Events of as many traces."""
    return [
        Recorded("orders.x", n, draft(n).event, {"ce-id": str(n), "traceparent": f"00-{n:032x}-{n:016x}-{flags}"})
        for n in range(1, count + 1)
    ]


async def test_a_batch_of_a_projector_is_one_span_linked_to_some_of_its_events(collector: Collector) -> None:
    projector = Projector(READ_MODEL, "ORDERS", MemoryLog(), "postgresql://nowhere")
    async with tracing(collector, ratio=0):
        for batch in (recorded(1_000, "01"), recorded(10, "00"), [*recorded(9, "00"), *recorded(12, "01")[-2:]]):
            with projector._span(batch):  # noqa: SLF001 (what the projector does with Postgres is not asked here)
                pass
    large, mixed = collector.spans  # of what nobody sees nothing is made
    assert (large.name, large.trace, len(large.links)) == ("project orders.ORDERS", f"{1:032x}", LINKS)
    assert large.told["messaging.batch.message_count"] == 1_000
    assert (mixed.trace, mixed.links) == (f"{11:032x}", ((f"{12:032x}", f"{12:016x}"),))


async def test_a_collector_that_is_away_holds_up_nobody_and_is_told_of_once() -> None:
    async with Collector() as collector:
        pass  # and gone
    with structlog.testing.capture_logs() as logs:

        async def told() -> list[str]:
            return [entry["event"] for entry in logs if "lost" not in entry["event"]]

        async with tracing(collector):
            with span("x"):
                pass
            await eventually(told, ["collector_away"])
            with span("y"):
                pass
        assert await told() == ["collector_away"]
    assert "BOXOFFICE_OTLP_ENDPOINT" in logs[0]["mend"]


async def test_a_collector_that_comes_back_is_told_of_once_too() -> None:
    answers = iter(["400 Bad Request", "400 Bad Request"])
    async with Collector() as collector:
        collector.receiver.say = lambda _: next(answers, "200 OK")
        with structlog.testing.capture_logs() as logs:
            async with tracing(collector):
                for n in range(1, 4):
                    with span("x"):
                        pass
                    await collector.receiver.has(n)
    assert [entry["event"] for entry in logs] == ["collector_away", "collector_back"]


async def test_a_process_stops_whether_or_not_the_collector_answers() -> None:
    async with Collector() as collector:
        collector.receiver.say = lambda _: ""  # it takes all and says nothing
        with structlog.testing.capture_logs() as logs:
            async with exported(collector.url, 1) as tracers:
                with acting_as("orders", tracers), span("x"):
                    pass
        assert [entry["event"] for entry in logs] == ["last_spans_lost"]


async def test_work_in_a_thread_is_waited_for_within_bounds() -> None:
    assert await done_within(30, lambda: None)
    stuck = asyncio.Event()
    loop = asyncio.get_running_loop()
    assert not await done_within(0.01, asyncio.run_coroutine_threadsafe(stuck.wait(), loop).result)
    stuck.set()


@pytest.mark.parametrize(
    ("traceparent", "seen"), [(TRACEPARENT, True), (TRACEPARENT[:-1] + "0", False), ("", False), ("x", False)]
)
def test_the_flag_says_whether_a_trace_is_seen(traceparent: str, seen: bool) -> None:
    assert is_seen(traceparent) is seen


@pytest.mark.parametrize(
    "endpoint", ["otel:4318", "grpc://otel:4317", "http://user:secret@otel:4318", "http://otel:4318?x=1", "http://"]
)
def test_what_is_no_address_of_a_collector_is_refused(endpoint: str) -> None:
    with pytest.raises(BadSetting, match="like http://otel-collector:4318") as refused:
        load(Settings, {"BOXOFFICE_OTLP_ENDPOINT": endpoint})
    assert "secret" not in str(refused.value)


def test_a_ratio_is_from_0_to_1() -> None:
    assert load(Settings, {"BOXOFFICE_TRACE_RATIO": "0.25"}).trace_ratio == 0.25
    for nonsense in ("1.1", "-0.1", "nan", "all"):
        with pytest.raises(BadSetting, match="BOXOFFICE_TRACE_RATIO"):
            load(Settings, {"BOXOFFICE_TRACE_RATIO": nonsense})
