"""Code of a revision, and a process that runs its rules and can reach nothing: `decide_worker.py`."""

import asyncio
import io
import os
import struct
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from common.errors import Invalid, Unavailable
from services.cli import decide_worker
from services.cli.decide_worker import Answer, Broken, Outcome, Ready, Row, Setup, States, frame

INSTALLED = Path(__file__).resolve().parents[2]
"""Where the packages `common` and `services` are that run now."""

PACKAGES = ("common", "services")

KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""What a worker is given of the environment: no address of a server, no password."""

A = TypeVar("A", bound=Answer)

answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class Code(msgspec.Struct, frozen=True):
    """The packages of a revision, in folder `tree`; `name` says to people which they are."""

    tree: Path
    name: str


async def git(tree: Path, *arguments: str) -> tuple[int, bytes, str]:
    """Ask git about a folder: its exit code, what it prints, and what it has to say. Raises Unavailable without git."""
    try:
        asked = await asyncio.create_subprocess_exec(
            *("git", "-C", str(tree), *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise Unavailable("Revisions are read with git, which is not installed here.") from error
    printed, said = await asked.communicate()
    return asked.returncode or 0, printed, last_line(said)


def last_line(said: bytes) -> str:
    """What an error comes down to."""
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


async def is_changed(tree: Path) -> bool:
    """Whether the code there is another than that of its last commit; False where there is no clone."""
    try:
        failed, printed, _ = await git(tree, "status", "--porcelain", "--", *PACKAGES)
    except Unavailable:
        return False
    return not failed and bool(printed)


async def unpacked(revision: str, tree: Path, into: Path) -> Code:
    """The code of a revision of the clone in `tree`, in a new folder in `into`. Raises Invalid, Unavailable."""
    failed, _, said = await git(tree, "rev-parse", "--is-inside-work-tree")
    if failed:
        raise Invalid(f"{tree} is no clone that git can read, so it has no revisions: {said}.")
    failed, printed, _ = await git(tree, "rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}")
    if failed:
        raise Invalid(f"There is no revision {revision!r} in {tree}; `git log` there lists them.")
    commit = printed.decode().strip()
    failed, archive, said = await git(tree, "archive", "--format=tar", commit, "--", *PACKAGES)
    if failed:
        raise Invalid(f"Revision {revision} has no code of Boxoffice: {said}.")
    folder = into / commit
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(folder, filter="data")
    short = commit[:12]
    return Code(folder, f"revision {short}" if short.startswith(revision) else f"revision {revision} ({short})")


class Worker:
    """A process that runs the rules of some code on what it is sent."""

    def __init__(self, code: Code, process: asyncio.subprocess.Process, said: IO[bytes]) -> None:
        assert process.stdin
        assert process.stdout
        self.code = code
        self._in = process.stdin
        self._out = process.stdout
        self._said = said
        self._answer = asyncio.create_task(self._read())

    async def send(self, content: Sequence[Row]) -> None:
        """Hand over events; none say that there are no more. Raises Invalid when it cannot go on."""
        if not self._answer.done():
            with suppress(ConnectionError):
                self._in.write(frame(content))
                await self._in.drain()
                return
        await self.answer(Ready)  # which is no answer any more

    async def answer(self, kind: type[A]) -> A:
        """What it answers next. Raises Invalid when it cannot go on, and says why."""
        answer = await self._answer
        if not isinstance(answer, kind):
            why = answer.why if isinstance(answer, Broken) else "it lost its place"
            raise Invalid(f"The rules of {self.code.name} cannot be tried: {why}.")
        self._answer = asyncio.create_task(self._read())
        return answer

    async def states(self, subjects: Sequence[str]) -> States:
        """The states of these aggregates as they end."""
        self._in.write(frame(subjects))
        await self._in.drain()
        return await self.answer(States)

    async def set_up(self, setup: Setup) -> Ready:
        """Have it load the rules. Raises Invalid when they do not import."""
        with suppress(ConnectionError):
            self._in.write(frame(setup))
            await self._in.drain()
        return await self.answer(Ready)

    async def outcome(self) -> Outcome:
        """What came of all that it was sent."""
        await self.send([])
        return await self.answer(Outcome)

    async def _read(self) -> Answer:
        try:
            size = struct.unpack(">I", await self._out.readexactly(4))[0]
            return answers.decode(await self._out.readexactly(size))
        except asyncio.IncompleteReadError:
            self._said.seek(0)
            return Broken(f"the process has ended: {last_line(self._said.read()) or 'it said nothing'}")

    async def forget(self) -> None:
        """Wait for no answer any more."""
        self._answer.cancel()
        await asyncio.wait([self._answer])


@asynccontextmanager
async def worker(code: Code) -> AsyncIterator[Worker]:
    """A process with this code, which ends when it is left."""
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-B", decide_worker.__file__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=said,
            env=environment_of(code.tree, os.environ),
            cwd=code.tree,
            limit=1 << 20,
        )
        made = Worker(code, process, said)
        try:
            yield made
        finally:
            await made.forget()
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def environment_of(tree: Path, here: Mapping[str, str]) -> dict[str, str]:
    """The variables of a worker."""
    return {"PYTHONPATH": str(tree), **{name: here[name] for name in KEPT if name in here}}
