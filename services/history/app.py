"""Wiring: the only file that imports all the others."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from common.aggregate import Decider
from common.runtime import Platform, Service
from common.settings import Settings


@asynccontextmanager
async def create_service(
    _platform: Platform,
    _settings: Settings,
    *,
    deciders: Sequence[Decider[Any, Any, Any]],  # noqa: ARG001
) -> AsyncIterator[Service]:
    """The history service: it reads what all others have told, by the rules (`deciders`) that it is given."""
    yield Service("history")
