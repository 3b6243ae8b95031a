"""`boxoffice` as processes that are forked from one that has imported it, which is two thirds of what a start costs."""

import asyncio
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

NURSERY = multiprocessing.get_context("forkserver")
# Not services.cli.main: its console looks at the environment when it is imported.
NURSERY.set_forkserver_preload(["services.cli.embedded", "rich.progress", "rich.table", "rich_click"])


class Files(NamedTuple):
    """What a process reads and where it writes; `errors` may be the same as `output`."""

    given: Path
    output: Path
    errors: Path


class Forked:
    """`boxoffice` with these words and this environment; it begins where another would have imported its code.

    What it has of an asyncio.subprocess.Process is the same. Make it in the loop in which it is waited for.
    """

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], files: Files, folder: Path | None = None
    ) -> None:
        arguments = (words, environment, files, folder or Path.cwd())
        self._process = NURSERY.Process(target=boxoffice, args=arguments, daemon=True)
        self._process.start()
        assert self._process.pid, "it was started"
        self.pid = self._process.pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._process.sentinel, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self.returncode = self._process.exitcode
        self._ended.set()

    def send_signal(self, number: int) -> None:
        """Send it a signal. Raises ProcessLookupError."""
        os.kill(self.pid, number)

    async def wait(self) -> int:
        """Wait until it has ended; its exit code, or the negative number of the signal that ended it."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode


def boxoffice(words: Sequence[str], environment: Mapping[str, str], files: Files, folder: Path) -> None:
    """What the forked process does, as if it had been executed so."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with ExitStack() as stack:
        opened = (files.given.open("rb"), files.output.open("ab"), files.errors.open("ab"))
        for number, file in enumerate(opened):
            os.dup2(stack.enter_context(file).fileno(), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # multiprocessing has put /dev/null there
    sys.argv = ["boxoffice", *words]
    from services.cli.start import main

    main()


async def ran(
    words: Sequence[str],
    environment: Mapping[str, str],
    *,
    given: bytes = b"",
    apart: bool = False,
    folder: Path | None = None,
    within: float = 60,
) -> tuple[int, bytes, bytes]:
    """The exit code of a command that runs to its end, its output, and its errors, which are in it unless `apart`."""
    with tempfile.TemporaryDirectory(prefix="boxoffice-test-") as home:
        files = Files(*(Path(home) / name for name in ("given", "output", "errors" if apart else "output")))
        files.given.write_bytes(given)
        command = Forked(words, environment, files, folder)
        try:
            code = await asyncio.wait_for(command.wait(), within)
        except TimeoutError:
            command.send_signal(9)
            raise
        return code, files.output.read_bytes(), files.errors.read_bytes() if apart else b""
