"""Wiring: the only file that imports all the others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from litestar import Router

from common.http import given
from common.runtime import Platform, Service
from common.settings import Settings
from services.web import api
from services.web.files import Files


@asynccontextmanager
async def create_service(_: Platform, __: Settings) -> AsyncIterator[Service]:
    """The web service: the page. What it shows, the page asks the other services for."""
    files = Files.load()
    doors = Router("/", route_handlers=[api.page, api.asset, api.clock], dependencies=given(files=files))
    yield Service("web", [doors], nowhere=partial(api.nowhere, files))
