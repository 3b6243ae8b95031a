"""Real people in a real Chromium, in front of every service."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser

from services.cli.servers import PostgresServer
from services.cli.system import SERVICES
from tests.browser.person import Person, chromium
from tests.conftest import Migrated, copied
from tests.harness import ServiceProcess


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The browser, for all tests: each person in it has a profile of their own."""
    async with chromium() as browser:
        yield browser


@asynccontextmanager
async def opened(postgres: PostgresServer, migrated: Migrated, **variables: str) -> AsyncIterator[ServiceProcess]:
    """Every service in one process, with these variables in its environment."""
    with tempfile.TemporaryDirectory(prefix="boxoffice-test-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        async with (
            copied(postgres, migrated, home) as settings,
            ServiceProcess(" ".join(SERVICES), settings, home, **variables) as process,
        ):
            yield process


@pytest.fixture(scope="module")
async def shop(postgres: PostgresServer, migrated: Migrated) -> AsyncIterator[ServiceProcess]:
    """One for all tests of a module."""
    async with opened(postgres, migrated) as process:
        yield process


Enter = Callable[..., Awaitable[Person]]


@pytest.fixture
async def enter(browser: Browser, shop: ServiceProcess) -> AsyncIterator[Enter]:
    """Somebody opens the page: `await enter("ada", "buyer")`, or nobody yet: `await enter()`."""
    async with AsyncExitStack() as stack:

        async def enter(name: str = "", role: str = "buyer", **how: object) -> Person:
            person = await stack.enter_async_context(Person.enters(browser, shop.url, **how))
            if name:
                await person.is_known_as(name, role)
            return person

        yield enter
