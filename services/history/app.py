"""Wiring: the only file that imports all the others."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from litestar import Router

from common.aggregate import Decider
from common.http import given
from common.runtime import Platform, Service
from common.settings import Settings
from services.history.api import HistoryController, HistoryDesk


@asynccontextmanager
async def create_service(
    platform: Platform, _: Settings, *, deciders: Sequence[Decider[Any, Any, Any]]
) -> AsyncIterator[Service]:
    """The history service: it reads what all others have told, by the rules (`deciders`) that it is given."""
    desk = HistoryDesk(platform.event_log, deciders, platform.connections)
    yield Service("history", [Router("/", route_handlers=[HistoryController], dependencies=given(desk=desk))])
