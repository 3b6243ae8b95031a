"""What `boxoffice new` makes passes all checks and its own tests as it is: tried in a copy of these sources."""

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from services.cli.new import ROOT, Names

NAMES = [Names("philately", "rare_stamp", "rare_stamps"), Names("a" * 20, f"a{'_b' * 11}c", f"a{'_b' * 11}d")]
"""An ordinary name, and the longest ones that there can be: what is made has to fit all the same."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """These sources, without what git and tools keep beside them."""
    return shutil.copytree(
        ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "__pycache__", "bench.json", "secrets")
    )


async def run(folder: Path, *words: str) -> str:
    """What a program of this environment says that runs on these sources, and ends well."""
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await asyncio.wait_for(process.communicate(), 600))[0].decode()
    assert process.returncode == 0, f"{' '.join(words)}:\n{said}"
    return said


async def make(folder: Path, names: Names) -> str:
    """`boxoffice new` there."""
    options = ("--aggregate", names.thing, "--plural", names.things, "--force")
    return await run(folder, sys.executable, "-m", "services.cli.main", "new", names.service, *options)


async def lint(folder: Path) -> None:
    for words in (["check"], ["format", "--check"]):
        await run(folder, sys.executable, "-m", "ruff", *words, "--no-cache", ".")


@pytest.mark.parametrize("names", NAMES, ids=["ordinary", "longest"])
async def test_a_new_service_needs_no_formatting_whatever_its_name(names: Names, copy: Path) -> None:
    said = await make(copy, names)
    assert f"+ services/{names.service}/domain.py" in said
    await lint(copy)


async def test_a_new_service_passes_all_checks_and_its_own_tests(copy: Path) -> None:
    """And of the tests that look at every service those that take little time."""
    await make(copy, NAMES[0])
    await run(copy, sys.executable, "-m", "mypy", "--cache-dir", os.devnull)
    await run(copy, str(Path(sys.executable).with_name("lint-imports")), "--no-cache")
    await run(copy, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)


TESTS = (
    *(
        "tests/unit/test_philately_domain.py",
        "tests/unit/test_philately_doors.py",
        "tests/integration/test_philately.py",
    ),
    *("tests/unit/test_events.py", "tests/unit/test_masking.py"),
    *("tests/unit/test_kubernetes.py", "tests/unit/test_compose.py", "tests/unit/test_monitoring.py"),
    "tests/unit/test_replay_decide.py::test_all_rules_there_are_can_be_tried_and_know_their_commands",
    "tests/integration/test_replay_listener.py::test_each_service_makes_all_of_its_listeners_for_a_rehearsal",
    "tests/integration/test_replay_listener.py::test_of_a_whole_day_every_listener_tells_what_is_missing_and_nothing_is_done",
    "tests/integration/test_rights.py::test_the_table_has_every_service_against_everything",
    "tests/integration/test_rights.py::test_every_service_is_known_to_the_topology",
    "tests/system/test_doors.py::test_every_operation_is_in_the_table_with_what_it_asks_for",
)
