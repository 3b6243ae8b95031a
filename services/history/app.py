"""Wiring: the only file that imports all the others."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from litestar import Router

from common.aggregate import Aggregate, Decider
from common.asyncapi import document
from common.http import given
from common.listener import Listener
from common.projector import ReadModel
from common.requests import Requester
from common.runtime import Platform, Service
from common.settings import Settings
from services.history.api import HistoryController, HistoryDesk
from services.history.dead_api import DeadLetterController, RedeliveryController, RepairDesk
from services.history.domain import REPAIRS
from services.history.gauges import Gauges
from services.history.letters import Letters
from services.history.overview import Overview
from services.history.speech_api import Speech, SpeechController
from services.history.system_api import SystemController


@asynccontextmanager
async def create_service(
    platform: Platform,
    _: Settings,
    *,
    deciders: Sequence[Decider[Any, Any, Any]],
    listeners: Sequence[type[Listener[Any]]],
    read_models: Sequence[ReadModel],
) -> AsyncIterator[Service]:
    """The history service: it reads what all others have told, by the rules (`deciders`) that it is given.

    `read_models`: those of all services, to tell how far they are; with `listeners`, to tell who hears what.
    """
    log = platform.event_log
    letters = Letters(log)
    desk = HistoryDesk(log, deciders, platform.connections)
    repair_desk = RepairDesk(letters, Aggregate(REPAIRS, log, cache=1_000), log, Requester(platform.client))
    doors = [HistoryController, DeadLetterController, RedeliveryController, SystemController, SpeechController]
    overview = Overview(platform, letters, read_models)
    speech = Speech(partial(document, deciders, listeners, read_models))
    things = given(desk=desk, repair_desk=repair_desk, overview=overview, speech=speech)
    router = Router("/", route_handlers=doors, dependencies=things)
    yield Service("history", [router], [letters, Gauges(platform, letters, read_models)])
