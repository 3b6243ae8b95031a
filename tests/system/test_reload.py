"""`boxoffice serve --reload`, with which the image of developers runs."""

import shutil
import signal
from pathlib import Path

from common.runtime import Platform
from tests.harness import BOXOFFICE, ServiceProcess, eventually
from tests.image import ROOT


async def test_a_change_of_code_starts_the_service_again(platform: Platform, home: Path) -> None:
    for package in ("common", "services"):
        shutil.copytree(ROOT / package, home / package, ignore=shutil.ignore_patterns("__pycache__"))
    process = ServiceProcess("web --reload", platform.settings, home)
    process.program = BOXOFFICE
    process.options = {"cwd": home}  # whose code comes first

    async def begun() -> int:
        return process.log.read_text().count('"serving"')

    async with process:
        await eventually(begun, 1)
        changed = home / "services" / "web" / "api.py"
        changed.write_text(changed.read_text() + "# changed\n")
        await eventually(begun, 2, within=60)
        assert '"code_changed"' in process.log.read_text()
        assert await process.stop() in (0, -signal.SIGTERM)
        assert process.log.read_text().count('"stopped"') == 2  # both ended in order
