"""`boxoffice` as processes that are forked from one that has imported it, which is two thirds of what a start costs."""

import asyncio
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

NURSERY = multiprocessing.get_context("forkserver")
NURSERY.set_forkserver_preload(["services.cli.main", "services.cli.system"])


class Forked:
    """`boxoffice` with these words, this environment and its output in a file; it begins where `exec` has imported.

    What it has of an asyncio.subprocess.Process is the same. Make it in the loop in which it is waited for.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._process = NURSERY.Process(target=boxoffice, args=(words, environment, log), daemon=True)
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


def boxoffice(words: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """What the forked process does, as if it had been executed so."""
    from services.cli.start import main

    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        for file, number in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(file.fileno(), number)
    sys.argv = ["boxoffice", *words]
    main()
