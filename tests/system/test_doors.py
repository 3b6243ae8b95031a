"""Every door there is, and who is refused at it: a table that fails when a door is made that is not in it."""

import asyncio
import hmac
import io
import json
import os
import tempfile
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from joserfc import jwt
from joserfc.jwk import ECKey
from litestar import Litestar
from litestar.handlers import BaseRouteHandler
from litestar.routes import ASGIRoute, HTTPRoute, WebSocketRoute
from rich.console import Console
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from common import rights
from common.aggregate import Aggregate
from common.auth import ROLES, RequiresUser, Scope, User
from common.clock import new_id, now
from common.credentials import KEY, TOKEN, csrf_digest
from common.errors import Unavailable
from common.event_log import EventLog
from common.events import Role
from common.runtime import connect as platform_of
from common.settings import Settings
from services.cli import system
from services.cli.demo import demo
from services.cli.embedded import make_roles
from services.cli.notifications import notifications
from services.cli.servers import NatsServer, PostgresServer, free_port
from services.cli.who import who_asks
from services.identity.domain import SESSIONS, USERS, LogIn, OpenSession, place_id_of, user_id_of
from services.identity.tokens import Issuer, new_signing_key
from services.web.api import VIEWS
from tests.harness import PASSWORDS, ServiceProcess, eventually, logins
from tests.nursery import ran

# Every operation of the OpenAPI document, and what it asks for: the least role and the scope, or `account` for what an
# API key is never good for, or `anyone` for whoever is let in.
DOORS = """
GET    /api/auth/keys                                                     buyer    account
POST   /api/auth/keys                                                     buyer    account
GET    /api/auth/keys/{key_id}                                            buyer    account
DELETE /api/auth/keys/{key_id}                                            buyer    account
POST   /api/auth/logout                                                   buyer    account
GET    /api/auth/me                                                       buyer    anyone
GET    /api/auth/sessions                                                 buyer    account
DELETE /api/auth/sessions/{session_id}                                    buyer    account
POST   /api/auth/ticket                                                   buyer    anyone
GET    /api/auth/users                                                    operator account
PUT    /api/auth/users/{user_id}/role                                     operator account
DELETE /api/auth/users/{user_id}/sessions                                 operator account
GET    /api/batch-kinds                                                   buyer    batches:read
POST   /api/batch-kinds/{kind}/pause                                      operator batches:write
POST   /api/batch-kinds/{kind}/resume                                     operator batches:write
GET    /api/batches                                                       buyer    batches:read
POST   /api/batches                                                       buyer    batches:write
GET    /api/batches/{batch_id}                                            buyer    batches:read
POST   /api/batches/{batch_id}/cancel                                     buyer    batches:write
GET    /api/batches/{batch_id}/errors                                     buyer    batches:read
GET    /api/batches/{batch_id}/operations                                 buyer    batches:read
GET    /api/batches/{batch_id}/report.csv                                 buyer    batches:read
POST   /api/batches/{batch_id}/retry                                      buyer    batches:write
GET    /api/documents/{document_id}                                       buyer    batches:read
GET    /api/events/dead                                                   operator events:read
GET    /api/events/dead/groups                                            operator events:read
GET    /api/events/dead/{letter}                                          operator events:read
PUT    /api/events/dead/{letter}/body                                     operator events:write
POST   /api/events/dead/{letter}/drop                                     operator events:write
POST   /api/events/dead/{letter}/retry                                    operator events:write
GET    /api/events/find/{wanted}                                             operator events:read
GET    /api/events/history/{service}/{aggregate_id}                       operator events:read
POST   /api/events/redeliveries                                           operator events:write
GET    /api/events/stream                                                 operator events:read
GET    /api/events/trace/{cause_id}                                       operator events:read
GET    /api/events/types                                                     operator events:read
GET    /api/notifications                                                 buyer    notifications:read
POST   /api/notifications/ack                                             buyer    notifications:write
GET    /api/notifications/inbox                                           buyer    notifications:read
GET    /api/notifications/preferences                                     buyer    notifications:read
PUT    /api/notifications/preferences                                     buyer    notifications:write
POST   /api/notifications/read                                            buyer    notifications:write
GET    /api/notifications/stream                                          buyer    notifications:read
POST   /api/notifications/{notification_id}/read                          buyer    notifications:write
POST   /api/operations                                                    buyer    batches:write
GET    /api/operations/{operation_id}                                     buyer    batches:read
GET    /api/orders                                                        buyer    orders:read
POST   /api/orders                                                        buyer    orders:write
GET    /api/orders/{order_id}                                             buyer    orders:read
DELETE /api/orders/{order_id}                                             buyer    orders:write
GET    /api/orders/{order_id}/ticket.pdf                                  buyer    orders:read
POST   /api/orders/{order_id}/payment                                     buyer    orders:write
GET    /api/system                                                        operator events:read
GET    /api/templates                                                     buyer    batches:read
POST   /api/templates                                                     buyer    batches:write
POST   /api/templates/preview                                             buyer    batches:write
GET    /api/templates/{template_id}                                       buyer    batches:read
PUT    /api/templates/{template_id}                                       buyer    batches:write
DELETE /api/templates/{template_id}                                       buyer    batches:write
POST   /api/tickets                                                       seller   tickets:write
GET    /api/tickets/mine                                                  seller   tickets:read
DELETE /api/tickets/{ticket_id}                                           seller   tickets:write
PATCH  /api/tickets/{ticket_id}                                           seller   tickets:write
GET    /api/webhooks                                                      buyer    webhooks:read
POST   /api/webhooks                                                      buyer    webhooks:write
GET    /api/webhooks/{webhook_id}                                         buyer    webhooks:read
DELETE /api/webhooks/{webhook_id}                                         buyer    webhooks:write
PATCH  /api/webhooks/{webhook_id}                                         buyer    webhooks:write
GET    /api/webhooks/{webhook_id}/deliveries                              buyer    webhooks:read
GET    /api/webhooks/{webhook_id}/deliveries/{delivery_id}                buyer    webhooks:read
POST   /api/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver      buyer    webhooks:write
POST   /api/webhooks/{webhook_id}/rotate                                  buyer    webhooks:write
"""

PUBLIC = {
    "GET /.well-known/jwks.json",
    "POST /api/auth/dev",
    "GET /api/auth/login/{provider}",
    "GET /api/auth/providers",
    "POST /api/auth/refresh",
    "GET /api/tickets",
    "GET /api/tickets/stream",
    "GET /api/tickets/{ticket_id}",
}
"""Operations for whoever asks: what is on sale, and how to get in. To be thought about before one is added."""

UNLISTED = {
    *(f"GET {view}" for view in VIEWS),
    "GET /assets/{version:str}/{name:path}",
    "GET /clock",
    "GET /health/live",
    "GET /health/ready",
    "GET /login",
    "GET /login/{file:str}",
    "GET /metrics",
    "GET /api/openapi.json",
    "GET /api/openapi/{name:str}",
    "GET /api/docs",
    "GET /api/docs/openapi.json",
    "GET /api/docs/start.js",
    "GET /api/docs/{path:str}",
    "GET /api/docs/assets/{file_path:path}",
    "GET /api/events/asyncapi.json",
    "GET /api/events/docs",
    "GET /api/events/docs/docs.css",
    "GET /api/notifications/client.js",
    "GET /api/auth/callback/{provider:str}",
}
"""Doors for whoever asks that the document leaves out."""

KIND = "records.insert"
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 100}
PAGE = {"name": "Page", "format": "html", "body": "<h1>{{ show }}</h1>"}
BODIES: Mapping[str, dict[str, Any]] = {
    "PUT /api/templates/{template_id}": PAGE,
    "PATCH /api/tickets/{ticket_id}": {"price": 1},
    "PATCH /api/webhooks/{webhook_id}": {"enabled": False},
    "POST /api/orders/{order_id}/payment": {"token": "tok_ok"},
}
"""What is sent to doors that lead to something of somebody, so that nothing but whose it is stands in the way."""

MADE: Mapping[str, tuple[str, dict[str, Any]]] = {
    "batch_id": ("/api/batches", {"kind": KIND, "operations": [{"key": "a", "value": "1"}]}),
    "key_id": ("/api/auth/keys", {"name": "mine", "scopes": ["orders:read"]}),
    "webhook_id": ("/api/webhooks", {"url": "http://127.0.0.1:9/hooks"}),
}
"""What one POST makes: the parameter that names it -> where, and what is sent. `things` makes the rest."""


class Door(msgspec.Struct, frozen=True):
    """An operation: who may."""

    method: str
    path: str
    role: Role
    scope: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def scopes(self) -> list[str]:
        """As the document has it; of what is of an account, only that it is."""
        return [] if self.scope == "anyone" else [self.scope]

    @property
    def unsafe(self) -> bool:
        return self.method != "GET"

    def at(self, ids: Mapping[str, str]) -> str:
        """Its path, with these in place of its parameters."""
        nobodys = dict.fromkeys((*IDS, "aggregate_id", "cause_id", "wanted"), str(NOBODYS))
        others = {"kind": KIND, "user_id": "nobody", "service": "orders", "letter": "999"}
        return self.path.format_map({**others, **nobodys, **ids})


def doors() -> Iterator[Door]:
    for line in DOORS.split("\n"):
        if line:
            method, path, role, scope = line.split()
            yield Door(method, path, msgspec.convert(role, Role), scope)


IDS = (
    *("order_id", "ticket_id", "operation_id", "document_id", "template_id", "delivery_id", "notification_id"),
    *("session_id", *MADE),
)
"""Parameters that name what belongs to somebody."""

NOBODYS = UUID("01920c3c-7a3e-7cc4-8a3e-3d1f0c5b9a10")
SCOPES = get_args(Scope)
EVERY = list(doors())
UNSAFE = [door for door in EVERY if door.unsafe]
SCOPED = [door for door in EVERY if door.scope != "anyone"]
FOR_SOME = [(door, role) for door in EVERY for role in ROLES[: ROLES.index(door.role)]]
OWNED = [door for door in EVERY if any(f"{{{name}}}" in door.path for name in IDS)]
SIGNING_KEY = new_signing_key()
OTHER_KEY = new_signing_key()
MADE_UP = "verysecret".ljust(43, "A")
"""What looks like the secret of an API key, and is nobody's: what has another shape is refused without a comparison."""


def named(door: object) -> str | None:
    return door.name if isinstance(door, Door) else None


each = pytest.mark.parametrize("door", EVERY, ids=named)


class Person(msgspec.Struct, frozen=True):
    """Somebody who is logged in."""

    name: str
    user_id: str
    role: Role
    session: UUID

    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token()}"}

    def token(self, csrf: str = "") -> str:
        """An access token of now, which outlives no test."""
        digest = csrf_digest(csrf) if csrf else ""
        return Issuer(SIGNING_KEY).access(User(self.user_id, self.role, session=self.session), digest, now())


class House(msgspec.Struct):
    """The whole system, where only credentials are believed, and people who have been let in."""

    process: ServiceProcess
    http: httpx.AsyncClient
    people: dict[str, Person]
    keys: dict[str, str]
    """API keys of the operator, by the one scope that each lacks; `all` lacks none, `revoked` is good for nothing."""
    ids: dict[str, str]
    """What is Ada's, by the parameter that names it."""
    app: Litestar

    async def ask(self, door: Door, headers: Mapping[str, str], ids: Mapping[str, str] | None = None) -> httpx.Response:
        """The answer of a door; of one that is open and streams, the beginning."""
        body = BODIES.get(door.name, {}) if door.method in ("POST", "PUT", "PATCH") else None
        more = {"If-Match": "*", **headers}
        async with self.http.stream(door.method, door.at(ids or {}), headers=more, json=body) as answer:
            if "event-stream" not in answer.headers.get("content-type", ""):
                await answer.aread()
            return answer

    def log(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self.process.log.read_text().splitlines() if line.startswith("{")]


def problem(answer: httpx.Response, *statuses: int) -> dict[str, Any]:
    """The problem details of an answer that has one of these statuses."""
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")
    found: dict[str, Any] = answer.json()
    assert (found["status"], bool(found["title"]), bool(found["detail"])) == (answer.status_code, True, True)
    return found


@pytest.fixture(scope="module")
async def house(postgres: PostgresServer) -> AsyncIterator[House]:
    """Every service in one process, and people who have logged in."""
    secrets = {
        "BOXOFFICE_SIGNING_KEY": SIGNING_KEY,
        "BOXOFFICE_WEBHOOK_SECRET": "w" * 32,
        "BOXOFFICE_WEBHOOK_PRIVATE_ADDRESSES": "1",
    }
    services = " ".join(system.SERVICES)
    async with servers(postgres) as (settings, home):
        # In this process the app is made, and not run: it tells which doors there are that no document names.
        environment = {**logins(settings), "BOXOFFICE_AUTH": "on", **secrets}
        async with (
            ServiceProcess(services, settings, home, **secrets) as process,
            httpx.AsyncClient(base_url=process.url, timeout=30) as http,
            system.app_of(list(system.SERVICES), environment) as app,
            platform_of(settings, "test") as platform,
        ):
            who: list[tuple[str, Role]] = [("ada", "seller"), ("bob", "operator"), *((role, role) for role in ROLES)]
            people = {name: await let_in(platform.event_log, name, role) for name, role in who}
            keys = {"all": await key(http, people["bob"], get_args(Scope))}
            for scope in get_args(Scope):
                keys[scope] = await key(http, people["bob"], [each for each in get_args(Scope) if each != scope])
            keys["revoked"] = await key(http, people["bob"], get_args(Scope), revoked=True)
            yield House(process, http, people, keys, await things(http, people["ada"]), app)


@asynccontextmanager
async def servers(postgres: PostgresServer) -> AsyncIterator[tuple[Settings, Path]]:
    """Servers that are migrated."""
    with tempfile.TemporaryDirectory(prefix="boxoffice-test-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        test: dict[str, object] = {"user": "test", "password": "test"}
        users = [*rights.nats_users(PASSWORDS), test]
        nats = NatsServer(home / "nats", port=free_port(), users=users, anybody="test")
        await nats.start()
        name = f"test_{uuid4().hex}"
        connection = await asyncpg.connect(postgres.url)
        await connection.execute(f"create database {name}")
        url = postgres.url.replace("/postgres?", f"/{name}?")
        await make_roles(url, PASSWORDS)
        settings = Settings(nats_url=nats.url, database_url=url, auth="on")
        await system.migrate(settings, lambda _: None)
        yield settings, home
        await connection.execute(f"drop database {name} with (force)")
        await connection.close()
        await nats.stop()


async def let_in(event_log: EventLog, name: str, role: Role) -> Person:
    """Somebody for whom a provider has vouched."""
    issuer, at, session_id = "https://id.example", now(), new_id()
    user_id, tomorrow = user_id_of(issuer, name), at + timedelta(days=1)
    await Aggregate(USERS, event_log).handle(place_id_of(user_id), LogIn(issuer, name, role, role, at))
    opened = OpenSession(session_id, user_id, "id", at, tomorrow)
    await Aggregate(SESSIONS, event_log).handle(session_id, opened, new=True)
    return Person(name, user_id, role, session_id)


async def key(http: httpx.AsyncClient, person: Person, scopes: Sequence[str], *, revoked: bool = False) -> str:
    made = await http.post("/api/auth/keys", json={"name": "test", "scopes": list(scopes)}, headers=person.bearer())
    assert made.status_code == 201, made.text
    if revoked:
        assert (await http.delete(f"/api/auth/keys/{made.json()['id']}", headers=person.bearer())).status_code == 204
    return str(made.json()["key"])


async def things(http: httpx.AsyncClient, ada: Person) -> dict[str, str]:
    """One of everything, Ada's."""

    async def make(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await http.post(path, json=body, headers=ada.bearer())
        assert answer.status_code in (201, 202), answer.text
        made: dict[str, Any] = answer.json()
        return made

    ticket = await make("/api/tickets", SHOW)

    async def on_sale() -> int:
        return (await http.post("/api/orders", json=wanted, headers=ada.bearer())).status_code

    wanted = {"ticket_id": ticket["id"], "quantity": 1}
    await eventually(on_sale, 201)
    template = await make("/api/templates", PAGE)
    payload = {"template_id": template["id"], "data": {"show": "x"}}
    rendered = await make("/api/operations", {"kind": "documents.render", "payload": payload})

    async def document() -> int:
        return (await http.get(f"/api/documents/{rendered['id']}", headers=ada.bearer())).status_code

    await eventually(document, 200, within=60)
    news = await http.get("/api/notifications", params={"after": 0, "wait": 20}, headers=ada.bearer())
    orders = await http.get("/api/orders", headers=ada.bearer())
    made = {name: str((await make(path, body))["id"]) for name, (path, body) in MADE.items()}
    return made | {
        "ticket_id": ticket["id"],
        "order_id": orders.json()["items"][0]["id"],
        "template_id": template["id"],
        "operation_id": rendered["id"],
        "document_id": rendered["id"],
        "notification_id": news.json()["items"][0]["id"],
        "session_id": str(ada.session),
    }


# The table itself


async def test_every_operation_is_in_the_table_with_what_it_asks_for(house: House) -> None:
    document = (await house.http.get("/api/openapi.json")).json()
    found = {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    asked = {name: operation["security"][0]["bearer"] for name, operation in found.items() if operation.get("security")}
    assert {name for name in found if name not in asked} == PUBLIC
    assert all(
        operation["security"] == [{way: asked[name]} for way in ("bearer", "page")]
        for name, operation in found.items()
        if name in asked
    )
    page = document["components"]["securitySchemes"]["page"]
    assert (page["type"], page["in"], page["name"]) == ("apiKey", "cookie", "boxoffice-session")
    assert "X-CSRF-Token" in page["description"]
    for door in EVERY:
        role, *scopes = asked.pop(door.name)
        assert role == door.role, door.name
        assert [{"account": "account"}.get(scope.partition(":")[0], scope) for scope in scopes] == door.scopes, (
            door.name
        )
        assert {"401", "403"} <= found[door.name]["responses"].keys(), door.name
    assert asked == {}, "these are not in the table"


async def test_no_door_is_open_that_no_document_names(house: House) -> None:
    open_doors, listed = set[str](), set[str]()
    for route in house.app.routes:
        handlers: list[BaseRouteHandler] = []
        if isinstance(route, HTTPRoute):
            handlers += route.route_handlers
        else:
            assert isinstance(route, (WebSocketRoute, ASGIRoute))
            handlers.append(route.route_handler)
        for handler in handlers:
            if any(isinstance(each, RequiresUser) for each in handler.resolve_middleware()):
                continue
            methods = sorted(getattr(handler, "http_methods", {"WEBSOCKET"}) - {"HEAD", "OPTIONS"})
            place = listed if getattr(handler, "resolve_include_in_schema", lambda: False)() else open_doors
            place |= {f"{method} {route.path}" for method in methods}
    assert open_doors == UNLISTED
    assert len(listed) == len(PUBLIC), listed


# Who is refused


@each
async def test_who_does_not_say_who_they_are_is_asked_to(house: House, door: Door) -> None:
    problem(await house.ask(door, {}), 401)


def signed(key: str, header: dict[str, Any] | None = None, **claims: object) -> str:
    """A token like ours, but for what is said here."""
    at = int(now().timestamp())
    body = {"iss": "boxoffice", "aud": "access", "sub": "ada", "role": "operator", "jti": str(new_id())}
    own = ECKey.import_key(SIGNING_KEY)
    own.ensure_kid()
    head = {"alg": "ES256", "kid": own.kid, "typ": "access+jwt"} | (header or {})
    given = {**body, "iat": at, "exp": at + 300, "sid": str(new_id()), **claims}
    if str(head["alg"]).startswith("HS"):  # signed with what everybody knows, as if it were a secret
        public = load_pem_private_key(key.encode(), None).public_key()
        secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        text = ".".join(urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=").decode() for each in (head, given))
        mac = hmac.digest(secret, text.encode(), f"sha{head['alg'][2:]}")
        return f"{text}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    return jwt.encode(head, given, ECKey.import_key(key))


def unsigned(signature: str = "") -> str:
    """A token that says it is not signed, with something in place of a signature."""
    head, body, _ = signed(SIGNING_KEY).split(".")
    said = json.loads(urlsafe_b64decode(head + "==")) | {"alg": "none"}
    none = urlsafe_b64encode(json.dumps(said).encode()).rstrip(b"=").decode()
    return f"{none}.{body}.{signature}"


def tampered() -> str:
    """Somebody else's role under a signature of ours."""
    head, _, signature = signed(SIGNING_KEY, role="buyer").split(".")
    return f"{head}.{signed(SIGNING_KEY).split('.')[1]}.{signature}"


def secret_of(key: str) -> str:
    """That of an API key. It may hold what stands between the parts."""
    return key.split("_", 2)[2]


def other_secret(key: str, secret: str) -> str:
    """An API key with another secret."""
    return "_".join([*key.split("_", 2)[:2], secret])


def nearly(house: House) -> str:
    """A secret that differs from the right one in its first character."""
    right = secret_of(house.keys["all"])
    return ("B" if right.startswith("A") else "A") + right[1:]


def long_ago() -> float:
    return (now() - timedelta(hours=1)).timestamp()


NONSENSE: Mapping[str, Callable[[House], str]] = {
    "an empty bearer": lambda _: "Bearer",
    "garbage": lambda _: "Bearer garbage",
    "a long one": lambda _: "Bearer " + "x" * 4000,
    "another scheme": lambda _: "Basic YWRhOmFkYQ==",
    "a name": lambda _: "Bearer dev:ada",
    "a name and a role": lambda _: "Bearer dev:bob:operator",
    "two tokens": lambda house: f"Bearer {house.people['bob'].token()} {house.people['bob'].token()}",
    "no scheme": lambda house: house.people["bob"].token(),
    "what looks like a token": lambda _: "Bearer eyJhbGciOiJub25lIn0",
    "alg none": lambda _: f"Bearer {unsigned()}",
    "alg none under a signature of ours": lambda _: f"Bearer {unsigned(signed(SIGNING_KEY).rpartition('.')[2])}",
    "alg HS256 by our public key": lambda _: f"Bearer {signed(SIGNING_KEY, {'alg': 'HS256'})}",
    "alg HS512 by our public key": lambda _: f"Bearer {signed(SIGNING_KEY, {'alg': 'HS512'})}",  # as long as ours
    "another key": lambda _: f"Bearer {signed(OTHER_KEY)}",
    "another key that says it is unknown": lambda _: f"Bearer {signed(OTHER_KEY, {'kid': 'elsewhere'})}",
    "other claims under our signature": lambda _: f"Bearer {tampered()}",
    "expired": lambda _: f"Bearer {signed(SIGNING_KEY, iat=long_ago() - 300, exp=long_ago())}",
    "that never expires": lambda _: f"Bearer {signed(SIGNING_KEY, exp=None)}",
    "for something else": lambda _: f"Bearer {signed(SIGNING_KEY, aud='refresh')}",
    "of another type": lambda _: f"Bearer {signed(SIGNING_KEY, {'typ': 'ticket+jwt'})}",
    "of another issuer": lambda _: f"Bearer {signed(SIGNING_KEY, iss='elsewhere')}",
    "a role that there is not": lambda _: f"Bearer {signed(SIGNING_KEY, role='owner')}",
    "a key that is none": lambda _: "Bearer boxoffice_nonsense",
    "a key that there is not": lambda _: f"Bearer boxoffice_{NOBODYS.hex}_{MADE_UP}",
    "a key with another secret": lambda house: f"Bearer {other_secret(house.keys['all'], MADE_UP)}",
    "a key with the secret of another": lambda house: (
        f"Bearer {other_secret(house.keys['all'], secret_of(house.keys['revoked']))}"
    ),
    "a key whose secret is nearly right": lambda house: f"Bearer {other_secret(house.keys['all'], nearly(house))}",
    "a key that was revoked": lambda house: f"Bearer {house.keys['revoked']}",
}


@pytest.mark.parametrize("given", NONSENSE)
@each
async def test_what_is_no_credential_of_ours_is_not_believed(house: House, door: Door, given: str) -> None:
    problem(await house.ask(door, {"Authorization": NONSENSE[given](house)}), 401)


async def test_what_is_made_here_is_refused_for_what_is_wrong_with_it_alone(house: House) -> None:
    """Without which the table above could be of what nobody ever believes."""
    me = "/api/auth/me"
    ours, all_right = signed(SIGNING_KEY), house.keys["all"]
    for bearer, who in ((ours, "ada"), (all_right, house.people["bob"].user_id)):
        answer = await house.http.get(me, headers={"Authorization": f"Bearer {bearer}"})
        assert (answer.status_code, answer.json()["user_id"]) == (200, who)
    ticket = signed(SIGNING_KEY, {"typ": "ticket+jwt"}, aud="ticket")
    address = f"ws{house.process.url.removeprefix('http')}/api/notifications/ws"
    async with connect(f"{address}?ticket={ticket}") as socket:
        assert msgspec.json.decode(await socket.recv())["type"] == "resumed"
    assert other_secret(all_right, secret_of(all_right)) == all_right
    for made in (other_secret(all_right, MADE_UP), other_secret(all_right, nearly(house))):
        assert KEY.fullmatch(made)
    for token in (unsigned("A" * 86), signed(SIGNING_KEY, {"alg": "HS512"}), signed(OTHER_KEY), tampered()):
        assert TOKEN.fullmatch(token)


@pytest.mark.parametrize(("door", "role"), FOR_SOME, ids=named)
async def test_who_may_do_less_is_refused(house: House, door: Door, role: Role) -> None:
    told = problem(await house.ask(door, house.people[role].bearer()), 403)
    assert told["detail"] == f"This is for {door.role}s, and you are {role}."


@pytest.mark.parametrize("door", SCOPED, ids=named)
async def test_a_key_that_lacks_just_the_scope_is_refused(house: House, door: Door) -> None:
    own = house.keys.get(door.scope, house.keys["all"])
    told = problem(await house.ask(door, {"Authorization": f"Bearer {own}"}), 403)
    assert (door.scope if door.scope != "account" else "people who have logged in") in told["detail"]


@pytest.mark.parametrize("door", [door for door in EVERY if door.scope != "account"], ids=named)
async def test_a_key_that_has_the_scope_is_let_in(house: House, door: Door) -> None:
    answer = await house.ask(door, {"Authorization": f"Bearer {house.keys['all']}"})
    assert answer.status_code not in (401, 403), answer.text


# What is somebody else's


@pytest.mark.parametrize("door", OWNED, ids=named)
async def test_what_is_somebody_elses_answers_like_what_is_not_there(house: House, door: Door) -> None:
    bob = house.people["bob"].bearer()  # who may do everything, but with what is his
    absent = await house.ask(door, bob)
    foreign = await house.ask(door, bob, house.ids)
    problem(absent, 404)
    text = foreign.text
    for own in house.ids.values():
        text = text.replace(own, str(NOBODYS))
    assert (foreign.status_code, json.loads(text)) == (404, absent.json())


@pytest.mark.parametrize("door", [door for door in OWNED if door.method == "GET"], ids=named)
async def test_what_somebody_else_tried_to_change_is_as_it_was(house: House, door: Door) -> None:
    answer = await house.ask(door, house.people["ada"].bearer(), house.ids)
    none_yet = {"{delivery_id}": 404, "ticket.pdf": 409}  # nothing was delivered, and nobody has paid
    wanted = next((status for part, status in none_yet.items() if part in door.path), 200)
    assert answer.status_code == wanted, answer.text


@pytest.mark.parametrize("door", [door for door in EVERY if door.method == "GET" and "{" not in door.path], ids=named)
async def test_what_is_listed_is_ones_own(house: House, door: Door) -> None:
    somebody = "seller" if door.role == "seller" else "buyer"
    told = await house.ask(door, house.people[somebody].bearer())
    assert told.status_code == (403 if door.role == "operator" else 200)
    if "event-stream" not in told.headers["content-type"]:
        assert not [name for name, own in house.ids.items() if own in told.text]


async def test_the_same_idempotency_key_of_two_users_is_of_two_requests(house: House) -> None:
    wanted, key = {"ticket_id": house.ids["ticket_id"], "quantity": 1}, {"Idempotency-Key": "the-same"}
    operation = {"kind": KIND, "payload": {"key": "b", "value": "1"}}
    batch = {"kind": KIND, "operations": [{"key": "c", "value": "1"}]}
    for path, body in (("/api/orders", wanted), ("/api/operations", operation), ("/api/batches", batch)):
        answers = [
            await house.http.post(path, json=body, headers=house.people[name].bearer() | key)
            for name in ("ada", "bob", "ada")
        ]
        assert all(answer.is_success for answer in answers), [answer.text for answer in answers]
        made = [answer.json()["id"] for answer in answers]
        assert made[0] == made[2] != made[1], path


async def test_a_document_is_not_made_from_somebody_elses_template(house: House) -> None:
    bob, absent = house.people["bob"].bearer(), str(NOBODYS)
    told = []
    for template_id in (house.ids["template_id"], absent):
        payload = {"template_id": template_id, "data": {}}
        made = await house.http.post(
            "/api/operations", json={"kind": "documents.render", "payload": payload}, headers=bob
        )
        path = made.headers["location"]

        async def status(path: str = path) -> str:
            return str((await house.http.get(path, headers=bob)).json()["status"])

        await eventually(status, "failed", within=60)
        told.append((await house.http.get(path, headers=bob)).json()["error"].replace(template_id, absent))
    assert told[0] == told[1]


KINDS = [("tickets.create", "tickets:write"), ("tickets.update", "tickets:write"), ("orders.cancel", "orders:write")]


@pytest.mark.parametrize(("kind", "scope"), KINDS)
async def test_a_batch_is_no_way_around_the_scope_of_what_it_does(house: House, kind: str, scope: str) -> None:
    bearer = {"Authorization": f"Bearer {house.keys[scope]}"}
    rows, csv = {"params": {"kind": kind}, "content": b"id\n1\n"}, {"Content-Type": "text/csv"}
    batch, operation = {"kind": kind, "operations": [{}]}, {"kind": kind, "payload": {}}
    for answer in (
        await house.http.post("/api/operations", json=operation, headers=bearer),
        await house.http.post("/api/batches", json=batch, headers=bearer),
        await house.http.post("/api/batches", **rows, headers=bearer | csv),  # type: ignore[arg-type]  # both are right
    ):
        assert scope in problem(answer, 403)["detail"]


async def test_who_may_not_hand_in_a_kind_may_not_try_again_what_failed_of_it(house: House) -> None:
    bob, lacking = house.people["bob"], {"Authorization": f"Bearer {house.keys['tickets:write']}"}
    update = {"kind": "tickets.update", "operations": [{"ticket_id": str(NOBODYS), "price": 1}]}
    path = (await house.http.post("/api/batches", json=update, headers=bob.bearer())).headers["location"]

    async def status() -> str:
        return str((await house.http.get(path, headers=bob.bearer())).json()["status"])

    await eventually(status, "FAILED", within=60)
    less = msgspec.structs.replace(bob, role="buyer").bearer()  # as if an operator had said so since
    assert "tickets:write" in problem(await house.http.post(f"{path}/retry", headers=lacking), 403)["detail"]
    assert "seller" in problem(await house.http.post(f"{path}/retry", headers=less), 403)["detail"]
    assert (await house.http.post(f"{path}/retry", headers=bob.bearer())).status_code == 202


@pytest.mark.parametrize("kind", ["tickets.create", "tickets.update", "documents.render", KIND])
async def test_a_batch_is_no_way_around_the_role_for_what_it_does(house: House, kind: str) -> None:
    buyer = house.people["buyer"].bearer()
    operation = {"kind": kind, "payload": {}}
    told = problem(await house.http.post("/api/operations", json=operation, headers=buyer), 403)
    assert told["detail"] == "This is for sellers, and you are buyer."


# Pages


@pytest.mark.parametrize("door", UNSAFE, ids=named)
async def test_a_cookie_alone_changes_nothing(house: House, door: Door) -> None:
    session = {"Cookie": f"boxoffice-session={house.people['bob'].token('secret')}"}
    token, foreign = {"X-CSRF-Token": "secret"}, {"Origin": "https://elsewhere.example"}
    assert "X-CSRF-Token" in problem(await house.ask(door, session), 403)["detail"]
    assert "X-CSRF-Token" in problem(await house.ask(door, session | {"X-CSRF-Token": "guess"}), 403)["detail"]
    assert "X-CSRF-Token" in problem(await house.ask(door, session | {"X-CSRF-Token": ""}), 403)["detail"]
    for origin in ("https://elsewhere.example", "null", "http://127.0.0.1:1", house.process.url + ".example"):
        told = problem(await house.ask(door, session | token | {"Origin": origin}), 403)["detail"]
        assert told.startswith("Origin: ")
    bearers = {"Cookie": f"boxoffice-session={house.people['bob'].token()}"}  # a program's token as a cookie
    assert "X-CSRF-Token" in problem(await house.ask(door, bearers | token), 403)["detail"]
    problem(await house.ask(door, {"Cookie": "boxoffice-session=garbage"} | token), 401)
    problem(await house.ask(door, token | foreign), 401)


async def test_a_page_of_ours_is_let_in(house: House) -> None:
    session = {"Cookie": f"boxoffice-session={house.people['bob'].token('secret')}", "Origin": house.process.url}
    made = await house.http.post("/api/tickets", json=SHOW, headers=session | {"X-CSRF-Token": "secret"})
    assert made.status_code == 201, made.text
    assert (await house.http.get("/api/auth/me", headers=session)).json()["user_id"] == house.people["bob"].user_id


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null"])
async def test_no_page_of_others_logs_somebody_in_or_keeps_them(house: House, origin: str) -> None:
    renewal = await house.http.post("/api/auth/refresh", json={}, headers={"Origin": origin})
    assert "Origin: " in problem(renewal, 403)["detail"]
    problem(await house.http.post("/api/auth/refresh", json={}), 401)
    problem(await house.http.post("/api/auth/refresh", json={"refresh_token": house.people["bob"].token()}), 401)
    problem(await house.http.post("/api/auth/dev", json={"name": "ada"}), 404)


# WebSockets


async def refused(house: House, query: str = "", **more: Any) -> int:
    """With which status a WebSocket is refused."""
    address = f"ws{house.process.url.removeprefix('http')}/api/notifications/ws{query}"
    with pytest.raises(InvalidStatus) as error:
        async with connect(address, **more):
            pass
    told = msgspec.json.decode(error.value.response.body or b"")
    assert (told["status"], bool(told["detail"])) == (error.value.response.status_code, True)
    return error.value.response.status_code


async def ticket_of(house: House, headers: Mapping[str, str]) -> str:
    made = await house.http.post("/api/auth/ticket", headers=headers)
    assert made.status_code == 201, made.text
    return str(made.json()["ticket"])


async def test_a_ticket_opens_one_socket_once(house: House) -> None:
    address = f"ws{house.process.url.removeprefix('http')}/api/notifications/ws"
    page = {"Cookie": f"boxoffice-session={house.people['ada'].token('secret')}", "X-CSRF-Token": "secret"}
    for headers in (page, house.people["ada"].bearer(), {"Authorization": f"Bearer {house.keys['all']}"}):
        ticket = await ticket_of(house, headers)
        async with connect(f"{address}?ticket={ticket}", origin=Origin(house.process.url)) as socket:
            assert msgspec.json.decode(await socket.recv())["type"] == "resumed"
        assert await refused(house, f"?ticket={ticket}") == 401


async def test_one_ticket_opens_one_socket_also_when_two_come_at_once(house: House) -> None:
    address = f"ws{house.process.url.removeprefix('http')}/api/notifications/ws"
    ticket = await ticket_of(house, house.people["ada"].bearer())

    async def try_it() -> int:
        try:
            async with connect(f"{address}?ticket={ticket}"):
                return 101
        except InvalidStatus as error:
            return error.response.status_code

    assert sorted(await asyncio.gather(*(try_it() for _ in range(5)))) == [101, 401, 401, 401, 401]


SOCKETS: Mapping[str, Callable[[House], str]] = {
    "none": lambda _: "",
    "an empty one": lambda _: "?ticket=",
    "garbage": lambda _: "?ticket=garbage",
    "an access token": lambda house: f"?ticket={house.people['ada'].token()}",
    "an API key": lambda house: f"?ticket={house.keys['all']}",
    "a name": lambda _: "?ticket=dev:ada",
    "one without a signature": lambda _: f"?ticket={unsigned()}",
    "one of another key": lambda _: f"?ticket={signed(OTHER_KEY, {'typ': 'ticket+jwt'}, aud='ticket')}",
    "an expired one": lambda _: (
        "?ticket=" + signed(SIGNING_KEY, {"typ": "ticket+jwt"}, aud="ticket", iat=long_ago() - 30, exp=long_ago())
    ),
}


@pytest.mark.parametrize("given", SOCKETS)
async def test_a_socket_needs_a_ticket(house: House, given: str) -> None:
    cookie = {"Cookie": f"boxoffice-session={house.people['ada'].token('secret')}"}  # browsers send it by themselves
    assert await refused(house, SOCKETS[given](house)) == 401
    assert await refused(house, SOCKETS[given](house), additional_headers=cookie) == 401


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", "http://127.0.0.1:1"])
async def test_a_page_of_others_opens_no_socket(house: House, origin: str) -> None:
    ticket = await ticket_of(house, house.people["ada"].bearer())
    assert await refused(house, f"?ticket={ticket}", origin=Origin(origin)) == 403
    assert await refused(house, origin=Origin(origin), additional_headers=house.people["ada"].bearer()) == 403


async def test_a_socket_too_needs_the_scope(house: House) -> None:
    lacking = {"Authorization": f"Bearer {house.keys['notifications:read']}"}
    assert await refused(house, additional_headers=lacking) == 403
    assert await refused(house, f"?ticket={await ticket_of(house, lacking)}") == 403


async def test_nothing_more_is_told_on_a_connection_whose_key_was_revoked(house: House) -> None:
    """Which is noticed before something is sent."""
    ada = house.people["ada"].bearer()
    made = (await house.http.post("/api/auth/keys", json={"name": "x", "scopes": list(SCOPES)}, headers=ada)).json()
    bearer = {"Authorization": f"Bearer {made['key']}"}
    address = f"ws{house.process.url.removeprefix('http')}/api/notifications/ws"

    async def may() -> int:
        return (await house.http.get("/api/auth/me", headers=bearer)).status_code

    async with (
        connect(f"{address}?after={2**50}", additional_headers=bearer) as socket,
        house.http.stream("GET", f"/api/notifications/stream?after={2**50}", headers=bearer) as stream,
    ):
        lines = stream.aiter_lines()
        assert msgspec.json.decode(await socket.recv())["type"] == "resumed"
        while "resumed" not in await anext(lines):
            pass
        assert (await house.http.delete(f"/api/auth/keys/{made['id']}", headers=ada)).status_code == 204
        await eventually(may, 401)
        order = {"ticket_id": house.ids["ticket_id"], "quantity": 1}
        assert (await house.http.post("/api/orders", json=order, headers=ada)).status_code == 201
        ending = msgspec.json.decode(await socket.recv())
        assert (ending["type"], "revoked" in ending["reason"]) == ("ended", True)
        await asyncio.wait_for(socket.wait_closed(), 20)
        assert socket.close_code == 1008
        rest = "\n".join([line async for line in lines])
        assert ("event: ended" in rest, "event: notification" in rest) == (True, False)


# What is told of it


async def test_who_is_refused_is_logged_and_never_what_they_showed(house: House) -> None:
    mark = f"refusal-{uuid4().hex}"
    tagged = {"X-Correlation-ID": mark}
    buyer, lacking = house.people["buyer"], house.keys["orders:read"]
    secret = f"boxoffice_{NOBODYS.hex}_{MADE_UP}"
    await house.http.get("/api/orders", headers=tagged)
    await house.http.get("/api/orders", headers=tagged | {"Authorization": f"Bearer {secret}"})
    await house.http.get("/api/orders", headers=tagged | {"Authorization": f"Bearer {lacking}"})
    await house.http.post("/api/tickets", json=SHOW, headers=tagged | buyer.bearer())
    told = [line for line in house.log() if line.get("correlation_id") == mark]
    bob, key_id = house.people["bob"].user_id, str(UUID(hex=lacking.split("_")[1]))
    assert [
        (line["event"], line["status"], line["method"], line["path"], line["user_id"], line["key_id"], line["address"])
        for line in told
    ] == [
        ("refused", 401, "GET", "/api/orders", None, None, "127.0.0.1"),
        ("refused", 401, "GET", "/api/orders", None, None, "127.0.0.1"),
        ("refused", 403, "GET", "/api/orders", bob, key_id, "127.0.0.1"),
        ("refused", 403, "POST", "/api/tickets", buyer.user_id, None, "127.0.0.1"),
    ]
    assert all(line["reason"] for line in told)
    await refused(house, f"?ticket={secret}")
    assert [line["path"] for line in house.log() if line["event"] == "refused"][-1] == "/api/notifications/ws"
    written = house.process.log.read_text()
    for given in (secret, "verysecret", "eyJ", *map(secret_of, house.keys.values())):
        assert given not in written


async def test_the_metrics_name_nobody(house: House) -> None:
    odd = f"X{uuid4().hex.upper()}"
    await house.http.request(odd, f"/api/orders/{NOBODYS}?user={odd}", headers=house.people["ada"].bearer())
    for path in (f"/{odd}", f"/api/orders/{house.ids['order_id']}?user={odd}"):
        await house.http.get(path, headers=house.people["ada"].bearer())
    told = (await house.http.get("/metrics")).text
    assert 'route="/api/orders/{' in told
    people = [name for person in house.people.values() for name in (person.user_id, str(person.session))]
    keys = [part for key in house.keys.values() for part in (key.split("_")[1], str(UUID(hex=key.split("_")[1])))]
    for text in (*people, *keys, *map(secret_of, house.keys.values()), *house.ids.values(), "127.0.0.1", odd):
        assert text not in told


# The command line


async def boxoffice(house: House, group: str, *arguments: str, **variables: str) -> tuple[int, str]:
    """The exit code of a command at this system, and what it says."""
    words = (group, "--url", house.process.url, *arguments)
    code, said, _ = await ran(words, {**os.environ, "COLUMNS": "500", **variables})
    return code, said.decode()


async def test_the_command_line_is_let_in_with_an_api_key_from_the_environment_or_a_file(
    house: House, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text(house.keys["all"] + "\n")
    for variables in ({"BOXOFFICE_API_KEY": house.keys["all"]}, {"BOXOFFICE_API_KEY_FILE": str(file)}):
        code, said = await boxoffice(house, "batch", "kinds", **variables)
        assert (code, KIND in said) == (0, True), said
    bob = who_asks(None, "ada", {"BOXOFFICE_API_KEY": house.keys["all"]})
    async with aclosing(notifications(house.process.url, bob, 0, Console(file=io.StringIO()))) as told:
        order = {"ticket_id": house.ids["ticket_id"], "quantity": 1}
        placed = await house.http.post("/api/orders", json=order, headers=house.people["bob"].bearer())
        while (await asyncio.wait_for(anext(told), 30))["about"] != placed.json()["id"]:
            pass  # it is of another test


@pytest.mark.parametrize(
    ("variables", "arguments", "says"),
    [
        ({}, ("kinds",), "does not let sam in: Authorization: Expected"),
        ({}, ("kinds",), "put an API key into BOXOFFICE_API_KEY"),
        ({"BOXOFFICE_API_KEY": f"boxoffice_{NOBODYS.hex}_{MADE_UP}"}, ("kinds",), "Make a new one at /api/auth/keys"),
        ({"BOXOFFICE_API_KEY": "very secret"}, ("kinds",), "BOXOFFICE_API_KEY: What it holds is no API key"),
        ({"BOXOFFICE_API_KEY": "verysecret"}, ("--user", "ada", "kinds"), "leave out one of them"),
        ({"BOXOFFICE_API_KEY_FILE": "/nowhere"}, ("kinds",), "BOXOFFICE_API_KEY_FILE='/nowhere': Cannot be read"),
        ({"BOXOFFICE_API_KEY": "batches:read"}, ("kinds",), "The API key lacks the scope batches:read"),
    ],
)
async def test_the_command_line_says_why_it_is_not_let_in_and_never_its_key(
    house: House, variables: dict[str, str], arguments: tuple[str, ...], says: str
) -> None:
    given = {name: house.keys.get(value, value) for name, value in variables.items()}
    code, said = await boxoffice(house, "batch", *arguments, **given)
    assert (code, says in said) == (1, True), said
    assert "Traceback" not in said
    assert all(value not in said for name, value in given.items() if name == "BOXOFFICE_API_KEY")
    assert "verysecret" not in said


async def test_the_demo_says_that_it_needs_a_system_that_believes_names(house: House) -> None:
    with pytest.raises(Unavailable, match="BOXOFFICE_AUTH=dev"):
        await demo(house.process.url, Console(file=io.StringIO()))
