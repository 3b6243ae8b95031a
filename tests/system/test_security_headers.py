"""What every answer of the system tells browsers, at every route that there is."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing

import httpx
import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from common.headers import EVERYWHERE, HTTPS_ONLY, headers_for
from common.problems import PROBLEM
from common.runtime import Platform
from services.cli.system import SERVICES, app_of, listen, server_of, url_of
from services.web.files import Files
from tests.harness import SIGNING_KEY, eventually, unlimited

ADA = {"Authorization": "Bearer dev:ada"}
SAM = {"Authorization": "Bearer dev:sam"}
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 1000}
NOBODYS = "01920c3c-7a3e-7cc4-8a3e-3d1f0c5b9a10"
HIDDEN = {"/", "/health/live", "/health/ready", "/metrics", "/api/docs", "/api/docs/assets/swagger-ui.css"}
IMPORT_MAP = next(rule for rule in Files.load().policy.split("; ") if rule.startswith("script-src"))
"""What the page may run: our modules, and where they are is in the page itself, word for word."""
WANTED = {name.decode(): value.decode() for name, value in (*EVERYWHERE, HTTPS_ONLY)}


class Shop:
    """The whole system in this process: its routes are known."""

    def __init__(self, app: Litestar, http: httpx.AsyncClient) -> None:
        self.app = app
        self.http = http

    def routes(self) -> set[tuple[str, str]]:
        """Each method and path that there is, with something for what varies."""
        return {
            (method, of_nobody(route.path))
            for route in self.app.routes
            if isinstance(route, HTTPRoute)
            for method in route.methods
        }

    async def answer(self, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
        """The head of an answer, which may have no end."""
        async with self.http.stream(method, path, headers=headers) as answer:
            return answer


def of_nobody(path: str) -> str:
    steps = path.split("/")
    return "/".join(NOBODYS if step.startswith("{") else step for step in steps)


@pytest.fixture
async def shop(platform: Platform) -> AsyncIterator[Shop]:
    """Every service."""
    async with serving(platform, list(SERVICES)) as shop:
        yield shop


@asynccontextmanager
async def serving(platform: Platform, names: Sequence[str]) -> AsyncIterator[Shop]:
    """These services, behind https, as the settings say."""
    environment = {
        "BOXOFFICE_SIGNING_KEY": SIGNING_KEY,
        "BOXOFFICE_NATS_URL": platform.settings.nats_url,
        "BOXOFFICE_DATABASE_URL": platform.settings.database_url,
        "BOXOFFICE_AUTH": "dev",
        "BOXOFFICE_PUBLIC_URL": "https://tickets.example",
        "BOXOFFICE_WEBHOOK_SECRET": "s" * 32,
        **unlimited(),
    }
    async with app_of(names, environment) as app:
        server = server_of(app)
        with closing(listen("127.0.0.1", 0)) as door:
            task = asyncio.create_task(server.serve(sockets=[door]))
            async with httpx.AsyncClient(base_url=url_of(door), timeout=20) as http:

                async def status() -> int:
                    return (await http.get("/health/ready")).status_code

                await eventually(status, 200)
                yield Shop(app, http)
            server.should_exit = True
            await task


def wrong_with(answer: httpx.Response) -> list[str]:
    """What is not as it should be in the headers of an answer."""
    found = [name for name, wanted in WANTED.items() if answer.headers.get_list(name) != [wanted]]
    if "content-security-policy" in found:
        policies = answer.headers.get_list("content-security-policy")
        scripts = [rule for policy in policies for rule in policy.split("; ") if rule.startswith("script-src")]
        if len(policies) == 1 and "default-src 'none'; base-uri 'none'; form-action 'none'; frame-anc" in policies[0]:
            found.remove("content-security-policy")
        if any(rule not in ("script-src 'self'", IMPORT_MAP) for rule in scripts):
            found.append(f"scripts: {scripts}")
    return found


async def test_every_answer_of_every_route_has_the_headers_that_keep_browsers_in_bounds(shop: Shop) -> None:
    routes = shop.routes()
    assert len(routes) > 60
    documented = shop.app.openapi_schema.to_schema()["paths"]
    assert {path for _, path in routes} >= {of_nobody(path) for path in documented}
    assert {path for _, path in routes} >= HIDDEN - {"/api/docs/assets/swagger-ui.css"}
    more = {("GET", path) for path in HIDDEN} | {
        ("GET", "/nowhere"),
        ("GET", "/api/docs/nowhere"),
        ("GET", "/api/docs/assets/nowhere"),
        ("GET", "/api/orders/no-id"),
        ("PUT", "/api/orders"),
        ("HEAD", "/api/tickets"),
        ("OPTIONS", "/api/tickets"),
        ("TRACE", "/api/tickets"),
    }
    found = {}
    statuses = set()
    for method, path in sorted(routes | more):
        for who in ({}, ADA, {"Authorization": "Bearer nobody"}):
            answer = await shop.answer(method, path, who)
            statuses.add(answer.status_code)
            if wrong := wrong_with(answer):
                found[method, path, answer.status_code] = wrong
    assert not found
    assert statuses >= {200, 204, 400, 401, 404, 405, 415}


@pytest.mark.parametrize("names", [["web"], list(SERVICES)], ids=["the web service alone", "every service"])
async def test_where_nothing_is_people_are_told_on_the_page_and_programs_by_a_problem(
    platform: Platform, names: Sequence[str]
) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    async with serving(platform, names) as shop:
        page = await shop.http.get("/", headers=browser)
        assert page.status_code == 200
        for path in ("/nope", "/tickets/", "/system/x", "/time/trace", "/%00", "/apis"):
            told = await shop.http.get(path, headers=browser)
            assert (told.status_code, told.text, wrong_with(told)) == (404, page.text, []), path
            assert told.headers["content-security-policy"] == page.headers["content-security-policy"]
            program = await shop.http.get(path)
            assert (program.status_code, program.json()["title"], wrong_with(program)) == (404, "Not Found", []), path
            assert told.headers["vary"] == program.headers["vary"] == "Accept, Accept-Encoding"
            sent = await shop.http.post(path, headers=browser)
            assert (sent.status_code, sent.headers["content-type"]) == (404, PROBLEM), path
        for path in ("/api", "/api/nope", "/api/docs/assets/nope", "/assets/nope", "/clock/x", "/health", "/metrics/x"):
            problem = await shop.http.get(path, headers=browser)
            assert (problem.status_code, problem.headers["content-type"]) == (404, PROBLEM), path
        head = await shop.http.head("/nope", headers=browser)
        assert (head.status_code, head.text) == (404, "")


async def test_what_somebody_may_see_is_kept_by_nobody(shop: Shop) -> None:
    documented = shop.app.openapi_schema.to_schema()["paths"]
    theirs = {
        (method.upper(), of_nobody(path))
        for path, methods in documented.items()
        for method, operation in methods.items()
        if operation.get("security")
    }
    assert len(theirs) > 30
    kept = [
        (method, path)
        for method, path in sorted(theirs)
        if (await shop.answer(method, path, ADA)).headers.get_list("cache-control") != ["no-store"]
    ]
    assert kept == []
    listed = await shop.http.post("/api/tickets", json=SHOW, headers=SAM)
    shown = await shop.http.get(listed.headers["Location"])
    assert shown.headers["etag"] == listed.headers["etag"]
    assert "cache-control" not in shown.headers


async def test_a_socket_that_is_refused_is_answered_like_all_others(shop: Shop) -> None:
    address = f"ws{str(shop.http.base_url).removeprefix('http').rstrip('/')}"
    paths = [each.path for each in shop.app.routes if not isinstance(each, HTTPRoute)]
    assert "/api/notifications/ws" in paths
    for path in [*paths, "/nowhere"]:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{address}{path}")
        response = refused.value.response
        answer = httpx.Response(response.status_code, headers=list(response.headers.raw_items()))
        assert wrong_with(answer) == []


async def test_the_module_that_pages_listen_with_is_asked_for_again_and_not_fetched_again(shop: Shop) -> None:
    there = await shop.http.get("/api/notifications/client.js")
    assert there.headers["cache-control"] == "no-cache"
    again = await shop.http.get("/api/notifications/client.js", headers={"If-None-Match": there.headers["etag"]})
    assert (again.status_code, wrong_with(again)) == (304, [])


def test_https_is_not_asked_for_where_there_is_none() -> None:
    assert HTTPS_ONLY not in headers_for("")
    assert HTTPS_ONLY not in headers_for("http://127.0.0.1:8080")
    assert HTTPS_ONLY in headers_for("https://tickets.example")
