"""`boxoffice backup` and `restore`: the whole log as files with checksums, and back."""

import asyncio
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

import msgspec
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from common import snapshots
from common.clock import now
from common.errors import Conflict, Invalid, NotFound, Unavailable
from common.event_log import MIGRATED
from common.postgres import POSTGRES_FAILED, told
from common.progress import Progress
from common.runtime import Platform, connect
from common.settings import Settings
from common.snapshots import CHUNK, Snapshot
from common.topology import CONSUMER, STREAMS
from services.cli.system import START_IT, alone, migrate

FORMAT = 1
MANIFEST = "manifest.json"
FILE = re.compile(r"[A-Z]+\.[0-9a-f]{8}\.tar\.s2")
"""What the files of a backup are called: their stream, and what tells them from those of another backup."""

ORDER = tuple(reversed([stream.name for stream in STREAMS]))
"""Effects before causes: what is in a backup has what led to it in there too, also if it is written meanwhile."""

SETTLE_SECONDS = 10.0
"""Between the end of the old log and the beginning of the new one. Within a second or two everybody has heard of it; an
append that was decided before gives up after 5 s, and one that waits for an answer then 2 s later. None of them may
meet the new log: its sequence numbers are used again."""


class Kept(msgspec.Struct, frozen=True):
    """A stream in a backup: its file, `size` bytes with that checksum, and what is in it.

    `last_id`: of its last event. `again`: the durable consumers that were at work meanwhile, and after which sequence
    each is to hear all again: what they did with it may be missing in the backup of another stream.
    """

    file: str
    size: int
    sha256: str
    snapshot: Snapshot
    last_id: str | None
    again: dict[str, int]


class Manifest(msgspec.Struct, frozen=True):
    """A backup: which version of Boxoffice began it when, and its streams by name, in the order of restoring."""

    version: str
    at: datetime
    streams: dict[str, Kept]


class _Sealed(msgspec.Struct, frozen=True):
    """The manifest as it is on the disk, with its own checksum."""

    format: int
    sha256: str
    manifest: msgspec.Raw


async def back_up(settings: Settings, folder: Path, progress: Progress, *, force: bool = False) -> Manifest:
    """Copy every stream to a new or empty folder, or with `force` instead of the backup that is in there.

    The manifest comes last: without it there is no backup, and until then the one before is complete. `progress` is
    told a stream, and how many bytes of about how many are written. Raises Conflict, Unavailable, OSError.
    """
    before = _held(folder)
    if before and not force:
        what = "holds a backup" if MANIFEST in before else "is not empty, and holds no complete backup"
        raise Conflict(f"{folder} {what}: name a new or empty folder, or replace what is in it with --force.")
    _make(folder)
    at, written = now(), dict[str, Kept]()
    try:
        async with connect(settings, "backup") as platform:
            # First: all that was settled by then has had its effect, and whatever comes later is heard again.
            places = await snapshots.places(platform.client)
            for stream in ORDER:
                written[stream] = await _save(platform, stream, folder, progress)
            moved = await snapshots.places(platform.client)
        for durable, place in places.items():
            if moved.get(durable) != place:
                written[CONSUMER[durable].stream].again[durable] = place.floor
        manifest = Manifest(importlib.metadata.version("boxoffice"), at, written)
        _seal(manifest, folder)
    except BaseException:  # also when it is interrupted
        _delete(folder, _held(folder) - before)
        raise
    _delete(folder, {name for name in before if FILE.fullmatch(name)})
    return manifest


async def _save(platform: Platform, stream: str, folder: Path, progress: Progress) -> Kept:
    """Copy one stream. Raises Unavailable, OSError."""
    there = await snapshots.state(platform.client, stream)
    if there is None:
        raise Unavailable(f"There is no stream {stream}.{MIGRATED}")
    name, size, checksum = f"{stream}.{token_hex(4)}.tar.s2", 0, sha256()
    with _own_file(folder / name) as file:

        def write(chunk: bytes) -> None:
            nonlocal size
            file.write(chunk)
            checksum.update(chunk)
            size += len(chunk)
            progress(stream, size, max(size, there.bytes))

        snapshot = await snapshots.save(platform.client, stream, write)
        file.flush()
        os.fsync(file.fileno())
    progress(stream, size, size)
    last = snapshot.state.last_seq
    last_id = await platform.event_log.event_id(stream, last) if last else None
    return Kept(name, size, checksum.hexdigest(), snapshot, last_id, {})


def _own_file(path: Path) -> BinaryIO:
    """A new file that nobody else can read: it holds all that the log does."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _seal(manifest: Manifest, folder: Path) -> None:
    """Write the manifest, all of it at once."""
    body = msgspec.json.encode(manifest)
    sealed = msgspec.json.encode(_Sealed(FORMAT, sha256(body).hexdigest(), msgspec.Raw(body)))
    beside = folder / f".{MANIFEST}.{token_hex(4)}"
    with _own_file(beside) as file:
        file.write(sealed)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(folder / MANIFEST)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _make(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _held(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def _delete(folder: Path, names: set[str]) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            (folder / name).unlink()


async def verified(folder: Path, progress: Progress) -> Manifest:
    """The backup in a folder, each byte of which is as it was written. Asks no server.

    Raises NotFound, Invalid with all that is wrong, OSError.
    """
    manifest = _read_manifest(folder)
    if wrong := _what_is_wrong(folder, manifest, progress):
        raise Invalid(f"The backup in {folder} is damaged: {'; '.join(wrong)}. Take another one.")
    return manifest


def _what_is_wrong(folder: Path, manifest: Manifest, progress: Progress) -> list[str]:
    wrong = []
    for stream, kept in manifest.streams.items():
        path = folder / kept.file
        if not path.is_file():
            wrong.append(f"{kept.file} is missing")
        elif (size := path.stat().st_size) != kept.size:
            wrong.append(f"{kept.file} has {size:,} bytes, not {kept.size:,}")
        elif _checksum(path, stream, kept.size, progress) != kept.sha256:
            wrong.append(f"{kept.file} was changed: its checksum is another")
    return wrong


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        sealed = msgspec.json.decode(path.read_bytes(), type=_Sealed)
        if sealed.format > FORMAT:
            raise Invalid(f"The backup in {folder} was made by a newer Boxoffice: restore it with that one.")
        if sha256(sealed.manifest).hexdigest() != sealed.sha256:
            raise Invalid(f"{path} was changed: its checksum is another. Take another backup.")
        manifest = msgspec.json.decode(sealed.manifest, type=Manifest)
    except FileNotFoundError as error:
        why = f"there is no {MANIFEST}. One that was interrupted has none"
        raise NotFound(f"There is no complete backup in {folder}: {why}.") from error
    except msgspec.MsgspecError as error:
        raise Invalid(f"{path} is damaged: {error}. Take another backup.") from error
    if strange := [name for name in manifest.streams if name not in ORDER]:
        raise Invalid(f"The backup in {folder} has streams that are not known here: {', '.join(strange)}.")
    if strange := [kept.file for kept in manifest.streams.values() if not FILE.fullmatch(kept.file)]:
        raise Invalid(f"{path} names files that no backup has: {', '.join(strange)}.")
    return manifest


def _checksum(path: Path, stream: str, size: int, progress: Progress) -> str:
    checksum, done = sha256(), 0
    for chunk in _chunks(path):
        checksum.update(chunk)
        done += len(chunk)
        progress(stream, done, size)
    return checksum.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


async def lost_by(settings: Settings, manifest: Manifest) -> Mapping[str, tuple[int, int]]:
    """How many events of how many a restore would lose of each stream; those that lose none are left out.

    Raises Unavailable.
    """
    lost = {}
    async with connect(settings, "restore") as platform:
        for stream in ORDER:
            there = await snapshots.state(platform.client, stream)
            if there is None or not there.messages:
                continue
            kept = manifest.streams.get(stream)
            last = kept.snapshot.state.last_seq if kept else 0
            began_alike = last <= there.last_seq and (
                not last or (kept and await platform.event_log.event_id(stream, last) == kept.last_id)
            )
            if number := min(there.messages, there.last_seq - last) if began_alike else there.messages:
                lost[stream] = (number, there.messages)
    return lost


def told_losses(lost: Mapping[str, tuple[int, int]]) -> str:
    """The same for people."""
    parts = ", ".join(f"{number:,} of {of:,} in {stream}" for stream, (number, of) in lost.items())
    return f"The system has events that the backup has not: {parts}."


async def restore_log(
    settings: Settings,
    folder: Path,
    manifest: Manifest,
    progress: Progress,
    report: Callable[[str], None],
    *,
    settle: float = SETTLE_SECONDS,
) -> None:
    """Bring the log back as it is in a verified backup, with nothing else in it; then migrate. Safe to repeat.

    `settle`: seconds in which what is under way in other processes comes to its end. `report` is told of changes, and
    of what is not restored yet if it fails. Raises Unavailable, OSError.
    """
    left = list(manifest.streams)
    try:
        async with connect(settings, "restore") as platform, alone(settings.database_url, report):
            try:
                async with snapshots.restoring(platform.client, f"boxoffice restore {folder}"):
                    await snapshots.tell_restored(platform.client)  # from here on nobody appends
                    for stream in STREAMS:
                        await snapshots.delete(platform.client, stream.name)
                    await snapshots.tell_restored(platform.client)  # and what they read meanwhile is gone
                    await asyncio.sleep(settle)
                    while left:
                        await _load(platform, left[0], folder, manifest.streams[left[0]], settings.replicas, progress)
                        del left[0]
                    if alone_there := await snapshots.held_alone(platform.client, list(manifest.streams)):
                        report(f"restored, but not on every node yet: {', '.join(alone_there)}. Keep them all running.")
            finally:
                if left:
                    report(_unfinished(list(manifest.streams), left))
    except POSTGRES_FAILED as error:
        raise Unavailable(f"{told(error, if_away=START_IT)}.") from error
    await migrate(settings, report)


async def _load(platform: Platform, stream: str, folder: Path, kept: Kept, replicas: int, progress: Progress) -> None:
    def told_chunks() -> Iterator[bytes]:
        done = 0
        for chunk in _chunks(folder / kept.file):
            yield chunk
            done += len(chunk)
            progress(stream, done, kept.size)

    await snapshots.load(platform.client, kept.snapshot, told_chunks(), replicas=replicas)
    for durable, after in kept.again.items():
        await snapshots.redeliver(platform.client, stream, durable, after)


def _unfinished(streams: Sequence[str], left: Sequence[str]) -> str:
    done = ", ".join(stream for stream in streams if stream not in left) or "nothing"
    return f"restored: {done}; not yet: {', '.join(left)}. Run the same again to finish it."


def tell(manifest: Manifest, console: Console) -> None:
    """What is in a backup."""
    table = Table("stream", "events", "from", "to", "bytes", box=None, pad_edge=False)
    for stream in (each.name for each in STREAMS if each.name in manifest.streams):
        kept = manifest.streams[stream]
        state = kept.snapshot.state
        numbers = (f"{state.messages:,}", f"{state.first_seq:,}", f"{state.last_seq:,}", decimal(kept.size))
        table.add_row(escape(stream), *numbers)
    console.print(table)
    console.print(
        f"the log as it was on {manifest.at:%Y-%m-%d %H:%M:%S}Z, by Boxoffice {manifest.version}; it is whole"
    )
