"""Wiring: the only file that imports all the others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Router

from common.aggregate import Aggregate
from common.http import given
from common.projector import Projected, Projector, ReadYourWrites
from common.requests import Responder
from common.runtime import Platform, Service
from common.settings import Settings
from services.tickets.api import TicketController, TicketDesk
from services.tickets.domain import TICKETS
from services.tickets.live import Availability
from services.tickets.read_model import READ_MODEL
from services.tickets.requests import BulkTickets


@asynccontextmanager
async def create_service(platform: Platform, settings: Settings) -> AsyncIterator[Service]:
    """The tickets service: its doors, and the projectors of what buyers look at."""
    log, database = platform.event_log, settings.database_url
    projected = {stream: Projected(READ_MODEL, stream, log, database) for stream in READ_MODEL.sources}
    aggregate = Aggregate(TICKETS, log)
    tickets = ReadYourWrites(aggregate, projected["TICKETS"])
    async with platform.pool("tickets") as pool:
        availability = Availability(log, projected, pool, platform.connections)
        desk = TicketDesk(tickets, pool, availability)
        router = Router("/", route_handlers=[TicketController], dependencies=given(desk=desk))
        projectors = [Projector(READ_MODEL, stream, log, database) for stream in READ_MODEL.sources]
        bulk = BulkTickets(aggregate).answering
        responder = Responder("tickets", bulk, platform.client, concurrency=4)  # of up to 500 commands
        yield Service("tickets", [router], [*projectors, *projected.values(), responder, availability])
