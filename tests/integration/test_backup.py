"""The whole log to a folder and back, and what may be wrong with the folder or go wrong on the way."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import asyncpg
import msgspec
import pytest
from nats.aio.msg import Msg
from nats.js.api import StreamConfig

from common import snapshots, topology
from common.errors import Conflict, DomainError, Invalid, NotFound, Unavailable
from common.event_log import Stored
from common.events import ExpirationCompleted
from common.listener import Listener, Subscription
from common.projector import Projected, Projector, ReadModel, create, rebuild
from common.rights import role_of
from common.runtime import Platform, running
from services.cli.backup import MANIFEST, ORDER, Manifest, back_up, lost_by, restore_log, told_losses, verified
from services.cli.doctor import log as log_findings
from services.cli.embedded import with_login
from services.cli.servers import PostgresServer
from services.cli.system import SIDE_SCHEMAS
from tests.cluster import finished
from tests.facts import draft, tell
from tests.harness import PASSWORDS, Fate, Proxy, command, eventually

STREAM, DURABLE = "EXPIRATION", "orders-cancel-expired"


def silent(*_: object) -> None:
    """Nobody looks at the progress."""


async def everything(platform: Platform) -> dict[str, list[Stored]]:
    """All messages of all streams."""
    return {
        stream: [each async for page in platform.event_log.scan(stream) for each in page] for stream in reversed(ORDER)
    }


async def fetched(platform: Platform, count: int, durable: str = DURABLE, within: float = 5) -> list[Msg]:
    """What comes to a consumer next."""
    stream = topology.CONSUMER[durable].stream
    subscription = await platform.client.jetstream().pull_subscribe_bind(durable, stream)
    try:
        return await subscription.fetch(count, timeout=within)
    finally:
        await subscription.unsubscribe()


def sequences(messages: list[Msg]) -> list[int]:
    return [message.metadata.sequence.stream for message in messages]


async def back(platform: Platform, folder: Path, manifest: Manifest) -> None:
    """Restore, while nobody else is there."""
    await restore_log(platform.settings, folder, manifest, silent, silent, settle=0)


async def test_all_streams_come_back_as_they_were_with_their_consumers(platform: Platform, home: Path) -> None:
    log, folder = platform.event_log, home / "backup"
    await tell(log, *range(1, 30))
    await log.append("orders.a", [draft(number) for number in range(3)], expected=0)
    await platform.client.jetstream().publish("dead.some-listener", b"\x00not an event", headers={"dead-attempts": "3"})
    heard = await fetched(platform, 10)
    for message in (*heard[:4], heard[6]):
        await message.ack_sync()
    waiting = await fetched(platform, 3, "expiration-hold-orders")
    await waiting[0].ack_sync()
    before, places = await everything(platform), await snapshots.places(platform.client)
    assert (places[DURABLE].floor, places[DURABLE].pending) == (4, 5)

    manifest = await back_up(platform.settings, folder, silent)
    await tell(log, *range(30, 40))
    await (await fetched(platform, 1))[0].ack_sync()
    await back(platform, folder, manifest)

    assert await everything(platform) == before
    assert await snapshots.places(platform.client) == places
    assert [trouble async for _, trouble in topology.inspect(platform.client) if trouble] == []
    assert sequences(await fetched(platform, 2)) == [11, 12]
    assert sequences(await fetched(platform, 2, "expiration-hold-orders", within=20)) == [2, 3]  # after ack_wait
    assert await log.append("expiration.next", [draft(99)], expected=0) == 30


async def test_a_backup_is_verified_without_servers_and_only_its_owner_may_read_it(
    platform: Platform, home: Path
) -> None:
    await tell(platform.event_log, 1, 2, 3)
    made = await back_up(platform.settings, home / "backup", silent)
    found = await verified(home / "backup", silent)
    assert found == made
    assert found.streams[STREAM].snapshot.state.messages == 3
    assert {path.stat().st_mode & 0o777 for path in (home / "backup").iterdir()} == {0o600}
    assert (home / "backup").stat().st_mode & 0o777 == 0o700


async def test_what_was_settled_while_a_backup_was_made_is_heard_again(platform: Platform, home: Path) -> None:
    """Its effect may be missing in a stream that was copied before."""
    await tell(platform.event_log, *range(1, 10))
    heard = await fetched(platform, 5)
    for message in heard[:2]:
        await message.ack_sync()
    settling: list[asyncio.Task[None]] = []

    async def settle() -> None:
        for message in heard[2:]:
            await message.ack_sync()

    def at_the_first_stream(stream: str, *_: int) -> None:
        if not settling:
            assert stream == "DEAD"
            settling.append(asyncio.create_task(settle()))

    manifest = await back_up(platform.settings, home / "backup", at_the_first_stream)
    assert manifest.streams[STREAM].again == {DURABLE: 2}
    await back(platform, home / "backup", manifest)
    assert sequences(await fetched(platform, 9)) == list(range(3, 10))


async def test_a_backup_of_a_log_that_grows_has_what_there_was_and_every_cause(platform: Platform, home: Path) -> None:
    log, over = platform.event_log, asyncio.Event()

    async def grow() -> None:
        """A cause in TICKETS, then its effect in NOTIFICATIONS."""
        number = 0
        while not over.is_set():
            number += 1
            for subject in (f"tickets.{number}", f"notifications.{number}"):
                await log.append(subject, [draft(number)], expected=0)

    growing = asyncio.create_task(grow())
    for attempt in range(5):
        manifest = await back_up(platform.settings, home / f"backup{attempt}", silent)
        causes, effects = (manifest.streams[stream].snapshot.state for stream in ("TICKETS", "NOTIFICATIONS"))
        assert attempt <= effects.last_seq <= causes.last_seq
    over.set()
    await growing
    before = await everything(platform)
    await back(platform, home / "backup4", manifest)
    for stream, events in (await everything(platform)).items():
        assert events == before[stream][: len(events)]
        assert len(events) == manifest.streams[stream].snapshot.state.messages


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def renumber(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"last_seq":3', b'"last_seq":2'))


def from_the_future(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))


@pytest.mark.parametrize(
    ("which", "damage", "kind", "says"),
    [
        pytest.param("EXPIRATION.*", cut, Invalid, r"EXPIRATION\..*\.tar\.s2 has [\d,]+ bytes, not [\d,]+", id="cut"),
        pytest.param("EXPIRATION.*", flip, Invalid, r"EXPIRATION\..* was changed: its checksum", id="flipped"),
        pytest.param("TICKETS.*", Path.unlink, Invalid, r"TICKETS\..* is missing", id="missing"),
        pytest.param(MANIFEST, cut, Invalid, "manifest.json is damaged", id="manifest-cut"),
        pytest.param(MANIFEST, renumber, Invalid, "manifest.json was changed", id="manifest-changed"),
        pytest.param(MANIFEST, from_the_future, Invalid, "made by a newer Boxoffice", id="newer"),
        pytest.param(MANIFEST, Path.unlink, NotFound, "no complete backup in .*: there is no", id="no-manifest"),
    ],
)
async def test_a_damaged_backup_is_refused_and_nothing_is_touched(
    platform: Platform,
    home: Path,
    which: str,
    damage: Callable[[Path], None],
    kind: type[DomainError],
    says: str,
) -> None:
    folder = home / "backup"
    await tell(platform.event_log, 1, 2, 3)
    await back_up(platform.settings, folder, silent)
    before, created = await everything(platform), await platform.event_log.end(STREAM)
    (damaged,) = folder.glob(which)
    damage(damaged)
    with pytest.raises(kind, match=says) as refusal:
        await verified(folder, silent)
    restoring = await command(platform.settings, "restore", str(folder), "--replace", "--yes")
    told, _ = await asyncio.wait_for(restoring.communicate(), 60)
    assert restoring.returncode == 1
    assert says_the_same(told.decode(), refusal.value.detail)
    assert await everything(platform) == before
    assert await platform.event_log.end(STREAM) == created


def says_the_same(told: str, detail: str) -> bool:
    """Whether the words are there, however they are set in a frame."""
    frame = str.maketrans("│╭╮╰╯─", "      ")
    return "".join(detail.split()) in "".join(told.translate(frame).split())


def without_ends(frame: bytes) -> Fate:
    """All but the ends of snapshots, which have nothing in them; nats-server 2.15 says 204 with most, not with all."""
    head = frame.partition(b"\r\n")[0].split()
    empty = (head[0] == b"MSG" and head[-1] == b"0") or (head[0] == b"HMSG" and head[-2] == head[-1])
    return "drop" if empty else "pass"


async def test_a_backup_is_replaced_only_when_asked_for_and_by_a_complete_one(
    platform: Platform, proxy: Proxy, home: Path
) -> None:
    folder = home / "backup"
    await tell(platform.event_log, 1)
    first = await back_up(platform.settings, folder, silent)
    with pytest.raises(Conflict, match="holds a backup: name a new or empty folder"):
        await back_up(platform.settings, folder, silent)
    await tell(platform.event_log, 2)

    proxy.answers = without_ends
    through = msgspec.structs.replace(platform.settings, nats_url=proxy.url)
    killed = await command(through, "backup", str(folder), "--force")

    async def begun() -> int:
        return len(list(folder.glob("DEAD.*")))

    await eventually(begun, 2)
    killed.kill()
    await killed.communicate()
    assert await verified(folder, silent) == first

    second = await back_up(platform.settings, folder, silent, force=True)
    assert await verified(folder, silent) == second != first
    assert len(list(folder.iterdir())) == len(ORDER) + 1


async def test_a_piece_is_given_again_as_long_as_nobody_is_known_to_take_it(
    platform: Platform, proxy: Proxy, home: Path
) -> None:
    """In a cluster a node may learn who restores a stream after the answer that says where its pieces go."""
    await tell(platform.event_log, *range(1, 10))
    before = await everything(platform)
    manifest = await back_up(platform.settings, home / "backup", silent)
    lost: list[bytes] = []

    def elsewhere(frame: bytes) -> Fate:
        if len(lost) == 3 or not frame.startswith(b"PUB $JS.SNAPSHOT.RESTORE."):
            return "pass"
        lost.append(frame.split(b" ", 2)[1])
        return frame.replace(lost[-1], lost[-1][:-1] + b"!", 1)  # nobody listens there, and the server says so

    proxy.requests = elsewhere
    near = msgspec.structs.replace(platform.settings, nats_url=proxy.url)
    await restore_log(near, home / "backup", manifest, silent, silent, settle=0)
    assert len(lost) == 3
    assert await everything(platform) == before


BESIDE = re.findall(
    r"exec -T postgres (pg_dump|pg_restore) (.*) (?:boxoffice >|--dbname=boxoffice <)",
    Path("deploy/README.md").read_text(),
)
"""What copies it, and what brings it back, each with its options."""


@pytest.mark.usefixtures("platform")
async def test_what_is_beside_the_log_comes_back_as_the_documents_say(
    database_url: str, postgres: PostgresServer, home: Path
) -> None:
    """Of who logged in, and who may see what was executed of batches."""
    (dump, dumped), (restore, restored) = BESIDE
    people = (
        "insert into identity_data.people (user_id, provider, subject, checked_at) values ($1, 'google', $1, now())"
    )
    connection = await asyncpg.connect(database_url)
    await connection.execute(people, "ada")
    await finished(postgres.programs / dump, *dumped.split(), f"--file={home / 'beside'}", database_url)
    await connection.execute("delete from identity_data.people")
    await connection.execute(people, "bob")
    await finished(postgres.programs / restore, *restored.split(), f"--dbname={database_url}", home / "beside")
    assert await connection.fetchval("select array_agg(user_id) from identity_data.people") == ["ada"]
    assert dumped.count("--schema=") == len(SIDE_SCHEMAS) - 1  # money that is no money is not kept
    identity = await asyncpg.connect(with_login(database_url, role_of("identity"), PASSWORDS["identity"]))
    assert await identity.fetchval("select count(*) from identity_data.people") == 1  # the rights are back too
    await identity.close()
    await connection.close()


async def test_a_killed_backup_is_none(platform: Platform, proxy: Proxy, home: Path) -> None:
    folder = home / "backup"
    proxy.answers = without_ends
    through = msgspec.structs.replace(platform.settings, nats_url=proxy.url)
    killed = await command(through, "backup", str(folder))

    async def begun() -> int:
        return len(list(folder.glob("DEAD.*")))

    await eventually(begun, 1)
    killed.kill()
    await killed.communicate()
    with pytest.raises(NotFound, match="One that was interrupted has none"):
        await verified(folder, silent)
    with pytest.raises(Conflict, match="holds no complete backup"):
        await back_up(platform.settings, folder, silent)
    made = await back_up(platform.settings, folder, silent, force=True)
    assert await verified(folder, silent) == made


async def test_a_backup_that_fails_leaves_nothing_behind(platform: Platform, home: Path) -> None:
    await platform.client.jetstream().delete_stream("TICKETS")
    with pytest.raises(Unavailable, match=r"There is no stream TICKETS\. Has `boxoffice migrate` run"):
        await back_up(platform.settings, home / "backup", silent)
    assert list((home / "backup").iterdir()) == []


async def test_a_system_with_other_events_is_not_restored_unless_they_may_be_lost(
    platform: Platform, home: Path
) -> None:
    folder, settings = home / "backup", platform.settings
    await tell(platform.event_log, 1, 2, 3)
    manifest = await back_up(settings, folder, silent)
    assert await lost_by(settings, manifest) == {}
    await tell(platform.event_log, 4, 5)
    await platform.event_log.append("orders.a", [draft(1)], expected=0)
    lost = await lost_by(settings, manifest)
    assert lost == {"EXPIRATION": (2, 5), "ORDERS": (1, 1)}

    before = await everything(platform)
    for words, says in (((), "Restore with --replace"), (("--replace",), "Go on?")):  # there is nobody to say yes
        refused = await command(settings, "restore", str(folder), *words)
        told, _ = await asyncio.wait_for(refused.communicate(), 60)
        assert refused.returncode == 1
        assert says_the_same(told.decode(), told_losses(lost))
        assert says in told.decode()
    assert await everything(platform) == before

    await back(platform, folder, manifest)
    await tell(platform.event_log, 6, 7, 8, 9)  # the same sequence numbers, and other events
    later = await back_up(settings, home / "later", silent)
    await back(platform, folder, manifest)
    await tell(platform.event_log, 10, 11, 12, 13, 14)
    assert await lost_by(settings, later) == {"EXPIRATION": (8, 8)}


@pytest.mark.parametrize(("during", "agreed"), [("DELETE", ["--replace", "--yes"]), ("RESTORE", [])])
async def test_a_restore_that_was_killed_is_finished_by_another(
    platform: Platform, proxy: Proxy, home: Path, during: str, agreed: list[str]
) -> None:
    folder, settings = home / "backup", platform.settings
    await tell(platform.event_log, 1, 2, 3)
    await platform.event_log.append("orders.a", [draft(1)], expected=0)
    before = await everything(platform)
    manifest = await back_up(settings, folder, silent)
    await tell(platform.event_log, 4)

    is_at_orders = proxy.lose(f"$JS.API.STREAM.{during}.ORDERS".encode())
    through = msgspec.structs.replace(settings, nats_url=proxy.url)
    killed = await command(through, "restore", str(folder), "--replace", "--yes")
    await asyncio.wait_for(is_at_orders.wait(), 60)
    killed.kill()
    await killed.communicate()

    async def there() -> list[str]:
        return [stream for stream in ORDER if await snapshots.state(platform.client, stream)]

    left = await there()
    with pytest.raises(topology.NotWhole, match="run `boxoffice restore"):  # else it would be lost in what comes next
        await platform.event_log.append("orders.b", [draft(2)], expected=0)
    migrating = await command(settings, "migrate")
    told, _ = await asyncio.wait_for(migrating.communicate(), 60)
    assert migrating.returncode == 1
    assert f"run `boxoffice restore {folder}` again" in " ".join(told.decode().split())
    assert await there() == left != list(ORDER), "nothing made an empty log of what is missing"
    found = [finding async for finding in log_findings(platform)]
    assert [finding.state for finding in found] == ["wrong"]

    finishing = await command(settings, "restore", str(folder), *agreed)  # again, where the old log is still there
    told, _ = await asyncio.wait_for(finishing.communicate(), 60)
    assert finishing.returncode == 0, told.decode()
    await topology.require_whole(platform.client)
    assert await everything(platform) == before
    assert await lost_by(settings, manifest) == {}
    assert await platform.event_log.append("orders.b", [draft(2)], expected=0) == 2


async def test_a_restore_that_fails_says_what_is_restored_and_what_is_not(
    platform: Platform, proxy: Proxy, home: Path
) -> None:
    folder = home / "backup"
    manifest = await back_up(platform.settings, folder, silent)
    told: list[str] = []
    proxy.requests = lambda frame: "drop" if b"$JS.API.STREAM.RESTORE.ORDERS" in frame else "pass"
    through = msgspec.structs.replace(platform.settings, nats_url=proxy.url)
    with pytest.raises(Unavailable, match="Stream ORDERS could not be restored: nats: timeout"):
        await restore_log(through, folder, manifest, silent, told.append, settle=0)
    done = ", ".join(ORDER[: ORDER.index("ORDERS")])
    assert told == [f"restored: {done}; not yet: ORDERS, TICKETS. Run the same again to finish it."]
    await back(platform, folder, manifest)
    assert await lost_by(platform.settings, manifest) == {}


class Waits(Listener[ExpirationCompleted]):
    """Is at work until it is let go."""

    durable = DURABLE

    def __init__(self) -> None:
        self.at_work = asyncio.Event()
        self.let_go = asyncio.Event()

    async def on(self, _: ExpirationCompleted) -> None:
        self.at_work.set()
        await self.let_go.wait()


async def test_what_came_of_an_event_of_the_old_log_is_not_told_of_the_new_one_with_its_number(
    platform: Platform, home: Path
) -> None:
    manifest = await back_up(platform.settings, home / "backup", silent)
    listener = Waits()
    listening = asyncio.create_task(Subscription(listener, platform.client).run())
    await tell(platform.event_log, 1)
    await asyncio.wait_for(listener.at_work.wait(), 10)
    await back(platform, home / "backup", manifest)
    await tell(platform.event_log, 2)
    assert sequences(await fetched(platform, 1)) == [1]
    listener.let_go.set()
    await asyncio.wait_for(listening, 20)  # it ends by itself, to begin anew
    await platform.client.flush()
    place = (await snapshots.places(platform.client))[DURABLE]
    assert (place.floor, place.pending) == (0, 1)


async def test_nobody_takes_the_read_model_of_the_old_log_for_one_of_the_new(platform: Platform, home: Path) -> None:
    log, database_url = platform.event_log, platform.settings.database_url
    model = ReadModel("facts", "create table facts (id text)", {STREAM: skip})
    await create(model, log, database_url)
    projected = Projected(model, STREAM, log, database_url)
    async with running([Projector(model, STREAM, log, database_url), projected]):
        await tell(log, 1, 2)
        assert await projected.wait(2, at_most=10)
        manifest = await back_up(platform.settings, home / "backup", silent)
        await tell(log, 3, 4, 5)
        assert await projected.wait(5, at_most=10)
        await back(platform, home / "backup", manifest)
        await tell(log, 6)
        assert not await projected.wait(3, at_most=0.1)
        assert not await projected.wait(3, at_most=3)  # also when it has looked where the read model is
        await rebuild(model, log, database_url)
        assert await projected.wait(3, at_most=10)
        assert not await projected.wait(4, at_most=0.1)
        await tell(log, 7)
        assert await projected.wait(4, at_most=10)


async def skip(*_: object) -> None:
    """Nothing is made of the events."""


async def test_what_has_aged_out_since_the_backup_stays_away(platform: Platform) -> None:
    js = platform.client.jetstream()
    await js.add_stream(StreamConfig(name="AGED", subjects=["aged"], max_age=1))
    await js.publish("aged", b"1")
    chunks: list[bytes] = []
    kept = await snapshots.save(platform.client, "AGED", chunks.append)
    assert kept.state.messages == 1

    async def left() -> int:
        there = await snapshots.state(platform.client, "AGED")
        assert there
        return there.messages

    await eventually(left, 0)
    await snapshots.delete(platform.client, "AGED")
    await snapshots.load(platform.client, kept, chunks)
    await eventually(left, 0)
    assert (await js.publish("aged", b"2")).seq == 2
