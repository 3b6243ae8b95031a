"""Wiring: the only file that imports all the others."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from litestar import Router
from litestar.types import ControllerRouterHandler

from common.aggregate import Aggregate
from common.assets import Asset
from common.event_log import EventLog
from common.events import Revoked
from common.http import given
from common.listener import Listener, Subscription
from common.projector import Projected, Projector, ReadYourWrites
from common.publisher import Publisher
from common.rehearsal import Rehearsal
from common.requests import Responder
from common.runtime import Platform, Service
from common.settings import BadSetting
from services.identity.api import (
    IdentityDesk,
    KeyController,
    LoginController,
    SessionController,
    UserController,
    login_page,
    public_keys,
)
from services.identity.domain import KEYRINGS, KEYS, SESSIONS, USERS
from services.identity.listeners import RevokeWhatWasIssued
from services.identity.logins import DevLogins, Logins
from services.identity.oidc import OidcProvider
from services.identity.read_model import READ_MODEL
from services.identity.requests import answering
from services.identity.sealing import Sealer
from services.identity.settings import IdentitySettings
from services.identity.tokens import Issuer
from services.identity.vouching import Vouching

PAGE = Path(__file__).parent / "page"
FILES = {"login.html": "text/html", "login.css": "text/css", "login.js": "text/javascript"}
"""Those of the page on which people log in, and what they are."""


def listeners_of(event_log: EventLog) -> Sequence[Listener[Any]]:
    """The ears of the service."""
    return [RevokeWhatWasIssued(Publisher[Revoked]("revoked", event_log))]


def rehearsed(rehearsal: Rehearsal) -> Sequence[Listener[Any]]:
    """The same, to learn what they would do."""
    return listeners_of(rehearsal)


@asynccontextmanager
async def create_service(platform: Platform, settings: IdentitySettings) -> AsyncIterator[Service]:
    """The identity service: its doors, who it asks, and the projector of what people see. Raises BadSetting."""
    log, database = platform.event_log, settings.database_url
    issuer = Issuer(settings.signing_key)
    secrets = [each for each in (settings.encryption_secret, settings.encryption_secret_before) if each]
    if settings.providers and not (secrets and settings.public_url):
        raise BadSetting("BOXOFFICE_ENCRYPTION_SECRET and BOXOFFICE_PUBLIC_URL: Required where there is a provider")
    users, sessions, keys = Aggregate(USERS, log), Aggregate(SESSIONS, log), Aggregate(KEYS, log)
    projected = Projected(READ_MODEL, "IDENTITY", log, database)
    async with platform.pool("identity") as pool, AsyncExitStack() as stack:
        providers = {each.name: await stack.enter_async_context(OidcProvider(each)) for each in settings.providers}
        sealer = Sealer(secrets) if secrets else None
        vouching = Vouching(users, providers, sealer, projected, pool, settings)
        logins = Logins(issuer, users, sessions, providers, sealer, vouching, log, pool, settings)
        developers = DevLogins(logins, settings) if settings.auth == "dev" else None
        page = {name: Asset.load(PAGE / name, media_type) for name, media_type in FILES.items()}
        desk = IdentityDesk(
            logins,
            developers,
            issuer,
            ReadYourWrites(users, projected),
            Aggregate(KEYRINGS, log),
            ReadYourWrites(keys, projected),
            projected,
            page,
            pool,
            settings,
        )
        doors: list[ControllerRouterHandler] = [
            LoginController,
            SessionController,
            KeyController,
            UserController,
        ]
        yield Service(
            "identity",
            [Router("/", route_handlers=[*doors, login_page, public_keys], dependencies=given(desk=desk))],
            [
                *(Subscription(listener, platform.client) for listener in listeners_of(log)),
                Projector(READ_MODEL, "IDENTITY", log, database),
                projected,
                vouching,
                Responder("identity", answering(issuer, users, keys, dev=settings.auth == "dev"), platform.client),
            ],
        )
