"""Which service answers what, as its controllers say."""

import re
from collections.abc import Mapping

from litestar import Litestar
from nats.aio.client import Client

from common.http import create_app
from common.live import Connections
from common.memory_log import MemoryLog
from common.runtime import Platform
from common.settings import Settings, load
from services.cli.system import SERVICES
from services.identity.tokens import new_signing_key


async def routes() -> Mapping[str, set[str]]:
    """The paths that each service answers, and no other; nobody has to be connected to know them."""
    everywhere = paths(create_app([], Settings()))
    variables = {"BOXOFFICE_WEBHOOK_SECRET": "s" * 32, "BOXOFFICE_SIGNING_KEY": new_signing_key()}
    found = {}
    for name, (make, kind) in SERVICES.items():
        settings = load(kind, variables)
        async with make(Platform(Client(), MemoryLog(), settings, Connections(1)), settings) as service:  # type: ignore[arg-type]  # nobody reads it
            app = create_app([service], settings)
        found[name] = paths(app) - everywhere
        if app.openapi_schema.paths:  # every service answers it, for itself
            found[name].add(f"/api/openapi/{name}.json")
    return found


def paths(app: Litestar) -> set[str]:
    return {re.sub(r"\{[^}]*\}", "x", route.path) for route in app.routes}
