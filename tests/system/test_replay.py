"""What a played sale has left in the log, decided again."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from common.runtime import Platform
from services.cli.decide import RULES, decide_again
from services.cli.demo import demo
from services.cli.sandbox import INSTALLED, Code
from services.cli.system import SERVICES
from tests.harness import ServiceProcess

EVERYTHING = " ".join(name for name in SERVICES if name != "web")


async def test_a_sale_is_decided_again_as_it_was(platform: Platform, home: Path) -> None:
    async with ServiceProcess(EVERYTHING, platform.settings, home) as shop:
        await demo(shop.url, Console(file=StringIO()))
    code = Code(INSTALLED, "this code")
    reports = {service: await decide_again(platform.event_log, service, code, code) for service in RULES}
    assert [report.differ for report in reports.values() if report.differ] == []
    for service in ("tickets", "orders", "notification"):
        assert reports[service].decisions > 0, service
        assert reports[service].as_recorded == 0, service
