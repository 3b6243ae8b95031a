"""Wiring: the only file that imports all the others."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from litestar import Router

from common.aggregate import Aggregate
from common.event_log import EventLog
from common.events import Priority
from common.http import given
from common.listener import Listener, Subscription
from common.projector import Projected, Projector, ReadYourWrites
from common.rehearsal import Rehearsal
from common.requests import Requester, Responder
from common.runtime import Platform, Service
from services.batch import kinds, read_model, report
from services.batch.api import BatchController, BatchDesk, KindController, OperationController
from services.batch.collector import AT_ONCE, Collector, Sweeper
from services.batch.domain import BATCHES, KINDS, OPERATION_REQUESTS, WORKS, Batches, Works, weight_of
from services.batch.intake import Intake
from services.batch.kinds_documents import DocumentController, DocumentDesk, RenderDocuments
from services.batch.listeners import (
    LINGER,
    AbandonUpload,
    CountWorkDone,
    ExecuteHighWork,
    ExecuteLowWork,
    ExecuteWork,
    Executing,
    ReleaseBatch,
)
from services.batch.rehearsal import NotedWork
from services.batch.renderers import Renderers
from services.batch.requests import answering
from services.batch.settings import BatchSettings
from services.batch.singles import Singles
from services.batch.templates import CACHED, TEMPLATES, TemplateShelf
from services.batch.templates_api import TemplateController, TemplateDesk

KEPT = 64_000_000
"""Bytes of pieces of work that are kept in memory, for each priority."""


def works_on(event_log: EventLog) -> Mapping[Priority, Works]:
    """The pieces of work on a log, by priority."""
    return {priority: Aggregate(decider, event_log, cache=KEPT, weigh=weight_of) for priority, decider in WORKS.items()}


def listeners_of(
    batches: Batches, works: Mapping[Priority, Works], collector: Executing, *, linger: float = LINGER
) -> Sequence[Listener[Any]]:
    """The ears of the service. `linger`: as `CountWorkDone` has it."""
    return (
        ReleaseBatch(batches, works),
        AbandonUpload(batches),
        ExecuteHighWork(collector),
        ExecuteWork(collector),
        ExecuteLowWork(collector),
        CountWorkDone(batches, works, linger=linger),
    )


def rehearsed(rehearsal: Rehearsal) -> Sequence[Listener[Any]]:
    """The same, to learn what they would do."""
    batches, works = Aggregate(BATCHES, rehearsal), works_on(rehearsal)
    return listeners_of(batches, works, NotedWork(rehearsal, works, batches, Aggregate(KINDS, rehearsal)), linger=0)


@asynccontextmanager
async def create_service(platform: Platform, settings: BatchSettings) -> AsyncIterator[Service]:
    """The batch service: its doors, its workers, and the projectors of what became of it all."""
    log, database = platform.event_log, settings.database_url
    batches = Aggregate(BATCHES, log)
    works = works_on(log)
    paused = Aggregate(KINDS, log)
    projected = Projected(read_model.READ_MODEL, "BATCH", log, database)
    visible = ReadYourWrites(batches, projected)
    templates = Aggregate(TEMPLATES, log, cache=CACHED)
    shelf = TemplateShelf(templates, log)
    async with (
        AsyncExitStack() as stack,
        platform.pool("batch") as pool,
        Renderers() as renderers,
        Renderers(1) as checkers,  # of its own, so that nobody who saves a template waits for documents
    ):
        ours: Mapping[str, kinds.Kind[Any]] = {RenderDocuments.name: RenderDocuments(shelf, renderers)}
        installed = kinds.installed(lambda kind: ours.get(kind.name) or kind())
        # To each its own, so that a slow kind takes no connection from another; limited by the kinds' own timeouts.
        pools = {
            name: await stack.enter_async_context(platform.pool("batch", command_timeout=None, max_size=AT_ONCE))
            for name, kind in installed.items()
            if kind.transactional
        }
        requester = Requester(platform.client)
        collector = Collector(pool, pools, requester, works, batches, paused, installed, settings)
        singles = Singles(Aggregate(OPERATION_REQUESTS, log, cache=1_000), works, visible, installed, pool)
        desk = BatchDesk(visible, singles, paused, Intake(visible, works, installed), installed, pool)
        things = given(
            desk=desk,
            template_desk=TemplateDesk(ReadYourWrites(templates, projected), shelf, checkers, pool),
            document_desk=DocumentDesk(pool),
        )
        doors = [BatchController, OperationController, KindController, TemplateController, DocumentController]
        yield Service(
            "batch",
            [Router("/", route_handlers=doors, dependencies=things)],
            [
                *(Subscription(listener, platform.client) for listener in listeners_of(batches, works, collector)),
                Projector(read_model.READ_MODEL, "BATCH", log, database),
                Projector(report.READ_MODEL, "BATCH", log, database),
                projected,
                Sweeper(pool),
                Responder("batch", answering(singles), platform.client),
            ],
        )
