"""Operations in bulk over HTTP, with the batch service as processes of their own that are killed."""

import asyncio
import csv
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

import common
from common.clock import now
from common.errors import Invalid, NotFound
from common.events import OperationsAdded
from common.requests import Requester
from common.requests.batch import Operations
from common.runtime import Platform
from services.batch import kinds
from services.batch.domain import work_id_of
from services.batch.kinds_documents import RenderDocuments
from services.batch.kinds_records import Record
from tests.harness import ServiceProcess, eventually
from tests.nursery import ran

ADA = {"Authorization": "Bearer dev:ada"}
EVE = {"Authorization": "Bearer dev:eve"}
OPERATOR = {"Authorization": "Bearer dev:operator"}
CSV = {"Content-Type": "text/csv"}
NDJSON = {"Content-Type": "application/x-ndjson"}
RECORDS = {"kind": "records.insert"}
LATER = (now() + timedelta(days=300)).isoformat()
KEYS = "select key from batch_data.records where owner = 'ada'"


class Office:
    """The batch service and who uses it."""

    def __init__(self, process: ServiceProcess, http: httpx.AsyncClient, database_url: str) -> None:
        self.process = process
        self._http = http
        self.database_url = database_url

    async def ask(self, method: str, path: str, *, who: dict[str, str] = ADA, **request: Any) -> httpx.Response:
        headers = who | request.pop("headers", {})
        return await self._http.request(method, self.process.url + path, headers=headers, **request)

    async def submit(self, body: str | bytes | AsyncIterator[bytes], **options: str) -> dict[str, Any]:
        """Hand in records as CSV."""
        content = body.encode() if isinstance(body, str) else body
        answer = await self.ask("POST", "/api/batches", params=RECORDS | options, content=content, headers=CSV)
        assert answer.status_code == 202, answer.text
        batch: dict[str, Any] = answer.json()
        return batch

    async def batch(self, batch_id: str) -> dict[str, Any]:
        answer = await self.ask("GET", f"/api/batches/{batch_id}")
        assert answer.status_code == 200, answer.text
        batch: dict[str, Any] = answer.json()
        return batch

    async def over(self, batch_id: str, status: str, within: float = 60) -> dict[str, Any]:
        """The batch when it has come to this end, and all of it is written."""

        async def look() -> tuple[str, bool]:
            try:
                batch = await self.batch(batch_id)
            except httpx.TransportError:
                return "gone", False
            return batch["status"], min(batch["written"].values()) == max(batch["written"].values())

        await eventually(look, (status, True), within)
        return await self.batch(batch_id)

    async def report(self, batch_id: str) -> list[dict[str, str]]:
        answer = await self.ask("GET", f"/api/batches/{batch_id}/report.csv")
        assert answer.status_code == 200
        return list(csv.DictReader(io.StringIO(answer.text)))

    async def keys(self) -> list[str]:
        """The records that are there."""
        connection = await asyncpg.connect(self.database_url)
        try:
            return [row["key"] for row in await connection.fetch(KEYS)]
        finally:
            await connection.close()


@pytest.fixture
async def office(platform: Platform, home: Path) -> AsyncIterator[Office]:
    async with (
        ServiceProcess("batch", platform.settings, home) as process,
        httpx.AsyncClient(timeout=30) as http,
    ):
        yield Office(process, http, platform.settings.database_url)


async def test_a_compressed_upload_is_refused(office: Office) -> None:
    headers = CSV | {"Content-Encoding": "gzip"}
    refused = await office.ask("POST", "/api/batches", params=RECORDS, content=b"\x1f\x8b", headers=headers)
    assert (refused.status_code, refused.headers["accept-encoding"]) == (415, "identity")


def records(keys: Sequence[object]) -> str:
    """A CSV of records."""
    return "key,value\n" + "".join(f"{key},v{key}\n" for key in keys)


async def test_a_file_is_executed_and_its_bad_rows_are_told(office: Office) -> None:
    rows = [f"{n},v{n}" for n in range(1, 2001)]
    rows[99] = ",nothing"  # row 100 has no key
    rows[499] = "a,b,c"  # row 500 has a cell too many
    rows[1499] = "1499,again"  # row 1500 has the key of the row before it, which is of the same piece
    batch = await office.submit("key,value\n" + "\n".join(rows))
    assert batch["counts"]["operations"] == 1998
    assert batch["counts"]["refused"] == 2
    over = await office.over(batch["id"], "COMPLETED_WITH_ERRORS")
    assert (over["counts"]["succeeded"], over["counts"]["failed"], over["counts"]["pending"]) == (1997, 1, 0)
    assert over["progress"] == 1
    wanted = {str(n) for n in range(1, 2001)} - {"100", "500", "1500"}
    assert sorted(await office.keys()) == sorted(wanted)

    report = await office.report(batch["id"])
    assert len(report) == 2000
    bad = {row["row"]: row for row in report if row["status"] != "succeeded"}
    assert {row: line["status"] for row, line in bad.items()} == {
        "100": "refused",
        "500": "refused",
        "1500": "failed",
    }
    assert "key" in bad["100"]["error"]
    assert "'1499'" in bad["1500"]["error"]

    failed = await office.ask("GET", f"/api/batches/{batch['id']}/operations", params={"status": "failed"})
    (operation,) = failed.json()["items"]
    assert operation["row"] == 1500
    shown = (await office.ask("GET", f"/api/operations/{operation['id']}")).json()
    assert (shown["status"], shown["batch_id"], shown["row"]) == ("failed", batch["id"], 1500)
    assert (await office.ask("GET", f"/api/operations/{operation['id']}", who=EVE)).status_code == 404
    for path in ("", "/operations", "/errors", "/report.csv"):
        assert (await office.ask("GET", f"/api/batches/{batch['id']}{path}", who=EVE)).status_code == 404


async def test_what_is_wrong_is_told_in_pages(office: Office) -> None:
    batch = await office.submit("key,value\n,a\nb,1\nb,2\n,c\n")
    await office.over(batch["id"], "COMPLETED_WITH_ERRORS")
    path = f"/api/batches/{batch['id']}/errors"
    told = (await office.ask("GET", path)).json()
    assert [(each["row"], each["status"], each["column"]) for each in told["items"]] == [
        (1, "refused", "key"),
        (3, "failed", None),
        (4, "refused", "key"),
    ]
    assert "'b'" in told["items"][1]["error"]
    assert told["next_cursor"] is None
    first = (await office.ask("GET", path, params={"limit": 2})).json()
    rest = (await office.ask("GET", path, params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert first["items"] + rest["items"] == told["items"]
    assert rest["next_cursor"] is None


async def test_what_became_of_operations_is_measured(office: Office) -> None:
    await office.over((await office.submit(records([1, 2, 3, 3]), priority="high"))["id"], "COMPLETED_WITH_ERRORS")
    metrics = (await office.ask("GET", "/metrics")).text.splitlines()
    assert 'boxoffice_batch_operations_total{kind="records.insert",outcome="succeeded"} 3.0' in metrics
    assert 'boxoffice_batch_operations_total{kind="records.insert",outcome="failed"} 1.0' in metrics
    assert 'boxoffice_batch_queue_seconds_count{priority="high"} 1.0' in metrics
    assert any(line.startswith("boxoffice_batch_statement_operations_count{") for line in metrics)


async def test_a_taker_of_results_that_is_held_up_does_not_hold_up_the_other(
    office: Office, platform: Platform
) -> None:
    connection = await asyncpg.connect(platform.settings.database_url)
    try:
        async with connection.transaction():  # nobody writes reports meanwhile
            await connection.execute("lock table batch_report.parts in exclusive mode")
            batch = await office.submit(records(range(3000)))

            async def written() -> tuple[str, int, int]:
                seen = await office.batch(batch["id"])
                return seen["status"], seen["written"]["operations"], seen["written"]["report"]

            await eventually(written, ("COMPLETED", 3000, 0))
            await office.process.kill()  # and with it both of them
            await office.process.start()
            await eventually(written, ("COMPLETED", 3000, 0))
        await office.over(batch["id"], "COMPLETED")
    finally:
        await connection.close()
    assert Counter(row["row"] for row in await office.report(batch["id"])) == Counter(map(str, range(1, 3001)))


async def test_what_failed_is_tried_again_when_somebody_asks(office: Office) -> None:
    await office.over((await office.submit(records([7])))["id"], "COMPLETED")
    batch = await office.submit(records(range(10)))
    await office.over(batch["id"], "COMPLETED_WITH_ERRORS")
    await mend(office)
    assert (await office.ask("POST", f"/api/batches/{batch['id']}/retry", who=EVE)).status_code == 404
    retried = await office.ask("POST", f"/api/batches/{batch['id']}/retry")
    assert (retried.status_code, retried.json()["status"]) == (202, "RUNNING")
    over = await office.over(batch["id"], "COMPLETED")
    assert (over["counts"]["succeeded"], over["counts"]["failed"]) == (10, 0)
    assert sorted(await office.keys()) == [str(n) for n in range(10)]

    async def told() -> list[tuple[str, str, str]]:
        return sorted((row["row"], row["run"], row["status"]) for row in await office.report(batch["id"]))

    again = [("8", "1", "failed"), ("8", "2", "succeeded")]
    await eventually(told, sorted([*again, *((str(n), "1", "succeeded") for n in range(1, 11) if n != 8)]))
    assert (await office.ask("POST", f"/api/batches/{batch['id']}/retry")).status_code == 409


async def test_a_name_that_is_twice_in_json_is_refused_where_it_is(office: Office) -> None:
    async def hand_in(body: bytes) -> httpx.Response:
        return await office.ask("POST", "/api/batches", content=body, headers={"Content-Type": "application/json"})

    operations = b'"operations":[{"key":"a","value":"1"},{"key":"b","value":"1","value":"2"}]'
    answer = await hand_in(b'{"kind":"records.insert",%b}' % operations)
    assert answer.status_code == 202, answer.text
    over = await office.over(answer.json()["id"], "COMPLETED_WITH_ERRORS")
    assert (over["counts"]["succeeded"], over["counts"]["refused"]) == (1, 1)
    (refused,) = [row for row in await office.report(over["id"]) if row["status"] == "refused"]
    assert (refused["row"], refused["error"]) == ("2", "value: May be given once, is there twice")
    answer = await hand_in(b'{"kind":"records.insert","kind":"records.insert",%b}' % operations)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "kind")


@pytest.mark.parametrize("length_is_said", [True, False])
async def test_json_that_is_too_large_is_better_sent_as_a_file(office: Office, *, length_is_said: bool) -> None:
    body = json.dumps(RECORDS | {"operations": [{"key": "k", "value": "v" * 1000}] * 1000}).encode()

    async def parts() -> AsyncIterator[bytes]:
        yield body

    content = body if length_is_said else parts()
    answer = await office.ask("POST", "/api/batches", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "send a file (text/csv or application/x-ndjson)" in answer.json()["detail"]
    assert "1,000,000 bytes" in answer.json()["detail"]


async def test_a_file_that_is_too_large_is_told_how_large_one_may_be(office: Office) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", office.process.port)
    headers = {"Host": "127.0.0.1", **ADA, **CSV, "Content-Length": "2000000001", "Connection": "close"}
    lines = ["POST /api/batches?kind=records.insert HTTP/1.1", *map(": ".join, headers.items()), "", ""]
    writer.write("\r\n".join(lines).encode())  # and nothing of the file
    answer = (await asyncio.wait_for(reader.read(), 30)).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 413 ")
    assert "The body is larger than 2,000,000,000 bytes." in answer


async def mend(office: Office) -> None:
    """Somebody deletes the record that was in the way."""
    connection = await asyncpg.connect(office.database_url)
    await connection.execute("delete from batch_data.records where key = '7'")
    await connection.close()


async def test_the_options_of_json_are_in_its_body(office: Office) -> None:
    batch = {"kind": "records.insert", "operations": [{"key": "a", "value": ""}]}
    refused = await office.ask("POST", "/api/batches", params={"priority": "high"}, json=batch)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "priority")
    assert await office.keys() == []


async def test_operations_come_as_json_too_and_one_by_one(office: Office) -> None:
    operations = [{"key": f"j{n}", "value": "v"} for n in range(3)]
    answer = await office.ask("POST", "/api/batches", json={**RECORDS, "operations": [*operations, {"key": 5}]})
    assert answer.status_code == 202
    await office.over(answer.json()["id"], "COMPLETED_WITH_ERRORS")
    single = [
        office.ask("POST", "/api/operations", json={**RECORDS, "payload": {"key": f"s{n}", "value": "v"}})
        for n in range(20)
    ]
    for created in await asyncio.gather(*single):
        assert created.status_code == 202
        path = created.headers["location"]

        async def status(path: str = path) -> Any:
            return (await office.ask("GET", path)).json()["status"]

        await eventually(status, "succeeded")
        assert (await office.ask("GET", path, who=EVE)).status_code == 404
    assert sorted(await office.keys()) == sorted(["j0", "j1", "j2", *(f"s{n}" for n in range(20))])


async def test_a_batch_is_cut_into_pieces_that_its_kind_executes_in_one_transaction(
    office: Office, platform: Platform
) -> None:
    kind, documents = RenderDocuments.name, [{"template_id": str(uuid4())}] * 120
    later = {"kind": kind, "run_at": LATER}
    asked: list[dict[str, Any]] = [
        {"json": later | {"operations": documents}},
        {"params": later, "content": "\n".join(map(json.dumps, documents)), "headers": NDJSON},
    ]
    for request in asked:
        answer = await office.ask("POST", "/api/batches", **request)
        assert answer.status_code == 202, answer.text
        batch_id = UUID(answer.json()["id"])
        pieces = [await platform.event_log.read(f"batch.normal.{work_id_of(batch_id, n)}") for n in range(4)]
        added = [piece[0].event for piece in pieces if piece]
        sizes = [len(event.operations) for event in added if isinstance(event, OperationsAdded)]
        assert sizes == [RenderDocuments.limit, RenderDocuments.limit, 120 - 2 * RenderDocuments.limit]


async def test_an_operation_with_the_same_key_again_is_the_same_one(office: Office) -> None:
    async def create(who: dict[str, str] = ADA, **changes: object) -> httpx.Response:
        asked = RECORDS | {"payload": {"key": "k", "value": "v"}} | changes
        return await office.ask("POST", "/api/operations", who=who, json=asked, headers={"Idempotency-Key": "again"})

    answers = [*await asyncio.gather(*(create() for _ in range(10))), await create()]
    assert [answer.status_code for answer in answers] == [202] * 11
    (operation_id,) = {answer.json()["id"] for answer in answers}
    others: list[dict[str, Any]] = [
        {"payload": {"key": "k", "value": "w"}},
        {"run_at": LATER},
        {"priority": "low"},
        {"priority": "high"},
        {"kind": RenderDocuments.name, "payload": {"template_id": str(uuid4())}},
    ]
    for changes in others:
        refused = await create(**changes)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "Idempotency-Key"), changes
    eves = await create(EVE)
    assert (eves.status_code, eves.json()["id"] != operation_id) == (202, True)

    async def status() -> str:
        return str((await create()).json()["status"])

    await eventually(status, "succeeded")
    assert await office.keys() == ["k"]


async def test_of_operations_with_one_key_and_several_priorities_at_the_same_instant_one_is_taken(
    office: Office,
) -> None:
    async def create(key: str, priority: str) -> httpx.Response:
        asked = RECORDS | {"payload": {"key": key, "value": "v"}, "priority": priority}
        return await office.ask("POST", "/api/operations", json=asked, headers={"Idempotency-Key": key})

    keys = [f"key-{number}" for number in range(10)]
    for key in keys:
        answers = await asyncio.gather(*(create(key, priority) for priority in ("high", "normal", "low")))
        assert sorted(answer.status_code for answer in answers) == [202, 422, 422]
    last = await office.submit(records(["after"]))
    await office.over(last["id"], "COMPLETED")
    assert sorted(await office.keys()) == ["after", *keys]


async def test_a_batch_that_is_in_is_answered_although_the_read_model_stands_still(office: Office) -> None:
    connection = await asyncpg.connect(office.database_url)
    try:
        async with connection.transaction():
            await connection.execute("lock table batch.batches")
            answer = await office.ask("POST", "/api/batches", params=RECORDS, content=records(["a", "b"]), headers=CSV)
            assert answer.status_code == 202
            taken = answer.json()
            assert (taken["counts"]["operations"], answer.headers["location"]) == (2, f"/api/batches/{taken['id']}")
    finally:
        await connection.close()
    over = await office.over(taken["id"], "COMPLETED")
    assert [over[name] for name in ("created_at", "kind", "priority")] == [
        taken[name] for name in ("created_at", "kind", "priority")
    ]


async def test_a_batch_with_the_same_key_again_is_the_same_one(office: Office) -> None:
    async def submit(key: str = "again", **changes: str) -> httpx.Response:
        headers = CSV | {"Idempotency-Key": key}
        body = records(range(3000)).encode()  # is taken in block by block
        return await office.ask("POST", "/api/batches", params=RECORDS | changes, content=body, headers=headers)

    answers = await asyncio.gather(*(submit() for _ in range(5)))
    taken = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    not_yet = [answer.json()["batch_id"] for answer in answers if answer.status_code == 409]  # it was still coming in
    assert (len(taken) + len(not_yet), len(taken) > 0) == (5, True)
    (batch_id,) = {*taken, *not_yet}
    over = await office.over(batch_id, "COMPLETED")
    assert over["counts"]["operations"] == 3000
    again = await submit()
    assert (again.status_code, again.json(), again.headers["Location"]) == (202, over, f"/api/batches/{batch_id}")
    as_json = RECORDS | {"operations": [{"key": "another", "value": "v"}]}  # rows are not compared
    headers = {"Idempotency-Key": "again"}
    assert (await office.ask("POST", "/api/batches", json=as_json, headers=headers)).json()["id"] == batch_id
    for changes in ({"priority": "low"}, {"on_invalid": "reject"}, {"run_at": LATER}):
        refused = await submit(**changes)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "Idempotency-Key")
    documents = {"kind": RenderDocuments.name, "operations": [{"template_id": str(uuid4())}]}
    assert (await office.ask("POST", "/api/batches", json=documents, headers=headers)).status_code == 422
    assert len((await office.ask("GET", "/api/batches")).json()["items"]) == 1
    assert sorted(await office.keys()) == sorted(map(str, range(3000)))


async def test_the_key_of_a_batch_whose_upload_broke_off_is_not_taken_again(office: Office) -> None:
    broken = records(range(100_000)) + '"never closed'
    headers = CSV | {"Idempotency-Key": "broken"}
    first = await office.ask("POST", "/api/batches", params=RECORDS, content=broken, headers=headers)
    assert first.status_code == 422
    mended = await office.ask("POST", "/api/batches", params=RECORDS, content=records([1]), headers=headers)
    assert (mended.status_code, mended.json()["batch_id"]) == (409, first.json()["batch_id"])
    assert "take a new key" in mended.json()["detail"]
    assert await office.keys() == []


async def test_a_batch_waits_for_its_time_and_may_be_cancelled_before(office: Office) -> None:
    later = (now() + timedelta(hours=1)).isoformat()
    batch = await office.submit("key,value\n1,v\n,no key\n2,v\n3,v\n", run_at=later)
    assert batch["status"] == "PENDING"
    first = f"/api/operations/{UUID(int=UUID(batch['id']).int + 1)}"
    assert (await office.ask("GET", first)).json()["status"] == "pending"
    assert (await office.ask("GET", first, who=EVE)).status_code == 404
    assert (await office.ask("POST", f"/api/batches/{batch['id']}/cancel", who=EVE)).status_code == 404
    cancelled = await office.ask("POST", f"/api/batches/{batch['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "CANCELLED")
    counts = (await office.over(batch["id"], "CANCELLED"))["counts"]
    assert (counts["cancelled"], counts["pending"], counts["refused"]) == (3, 0, 1)
    assert (await office.ask("GET", first)).json()["status"] == "cancelled"
    operations = await office.ask("GET", f"/api/batches/{batch['id']}/operations", params={"status": "cancelled"})
    assert [operation["row"] for operation in operations.json()["items"]] == [1, 3, 4]
    told = {row["row"]: row["status"] for row in await office.report(batch["id"])}
    assert told == {"1": "cancelled", "2": "refused", "3": "cancelled", "4": "cancelled"}
    soon = await office.submit(records(range(10, 13)), run_at=(now() + timedelta(seconds=1)).isoformat())
    over = await office.over(soon["id"], "COMPLETED")
    assert over["started_at"] >= soon["run_at"]
    assert sorted(await office.keys()) == ["10", "11", "12"]


async def test_a_paused_kind_waits_until_it_is_resumed(office: Office) -> None:
    path = "/api/batch-kinds/records.insert"
    assert (await office.ask("POST", f"{path}/pause")).status_code == 403
    assert (await office.ask("POST", f"{path}/pause", who=OPERATOR)).json()["paused"]
    batch = await office.submit(records(range(3)))
    await eventually(lambda: status_of(office, batch["id"]), "RUNNING")
    cancelled = await office.submit(records(range(10, 13)))
    await eventually(lambda: status_of(office, cancelled["id"]), "RUNNING")
    assert (await office.batch(batch["id"]))["paused"]
    assert (await office.ask("POST", f"/api/batches/{cancelled['id']}/cancel")).status_code == 200
    over = await office.over(cancelled["id"], "CANCELLED")
    assert not over["paused"]
    assert await office.keys() == []
    assert not (await office.ask("POST", f"{path}/resume", who=OPERATOR)).json()["paused"]
    assert not (await office.over(batch["id"], "COMPLETED"))["paused"]
    assert sorted(await office.keys()) == ["0", "1", "2"]


async def status_of(office: Office, batch_id: str) -> str:
    status: str = (await office.batch(batch_id))["status"]
    return status


async def test_an_upload_that_breaks_off_runs_nothing(office: Office) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield records(range(30_000)).encode()
        await eventually(lambda: opened(office), 1)
        raise ConnectionAbortedError("the person went away")

    with pytest.raises(ConnectionAbortedError):
        await office.submit(half())
    (batch,) = (await office.ask("GET", "/api/batches")).json()["items"]
    over = await office.over(batch["id"], "FAILED")
    assert "broke off" in over["detail"]
    assert await office.keys() == []


async def opened(office: Office) -> int:
    return len((await office.ask("GET", "/api/batches")).json()["items"])


BAD: dict[str, tuple[str, dict[str, str], int, str]] = {
    "an unknown kind": (records([1]), {"kind": "seats.fly"}, 404, "records.insert"),
    "nothing": ("", RECORDS, 422, "empty"),
    "only a header": ("key,value\n", RECORDS, 422, "header"),
    "a wrong delimiter": ("key;value\n1;2\n", RECORDS, 422, "comma"),
    "a missing column": ("key\n1\n", RECORDS, 422, "value"),
    "a column too many": ("key,value,colour\n1,2,3\n", RECORDS, 422, "colour"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_file_that_is_none_is_refused_as_a_whole(office: Office, case: str) -> None:
    body, parameters, status, says = BAD[case]
    answer = await office.ask("POST", "/api/batches", params=parameters, content=body.encode(), headers=CSV)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert says in answer.json()["detail"]


async def test_a_time_without_an_offset_is_refused(office: Office) -> None:
    for answer in (
        await office.ask("POST", "/api/batches", json={**RECORDS, "operations": [{}], "run_at": "2030-01-01T00:00:00"}),
        await office.ask(
            "POST",
            "/api/batches",
            params=RECORDS | {"run_at": "2030-01-01T00:00:00"},
            headers=CSV,
            content=b"key,value\n1,2\n",
        ),
    ):
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["field"] == "run_at"


IMPOSSIBLE = ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00Z"]
TOO_FAR = [*IMPOSSIBLE, "9999-12-31T23:59:59Z", (now() + timedelta(days=367)).isoformat()]


@pytest.mark.parametrize("run_at", TOO_FAR, ids=range(len(TOO_FAR)))
async def test_a_time_that_nothing_could_keep_or_wait_for_is_refused_at_every_door(
    office: Office, platform: Platform, run_at: str
) -> None:
    row = {"key": "a", "value": "b"}
    answers = [
        await office.ask("POST", "/api/batches", json={**RECORDS, "operations": [row], "run_at": run_at}),
        await office.ask("POST", "/api/operations", json={**RECORDS, "payload": row, "run_at": run_at}),
        await office.ask(
            "POST", "/api/batches", params=RECORDS | {"run_at": run_at}, headers=CSV, content=records([1])
        ),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "run_at"), answer.text
        assert ("years 1 to 9999" if run_at in IMPOSSIBLE else "next 366 days") in answer.json()["detail"]
    with pytest.raises(Invalid, match=r"^run_at: "):
        await Operations(Requester(platform.client)).create(
            "records.insert", Record("a", "b"), user_id="ada", run_at=datetime.fromisoformat(run_at)
        )
    assert (await platform.event_log.end("BATCH")).sequence == 0


@pytest.mark.usefixtures("office")
async def test_a_time_without_an_offset_is_refused_over_nats_too(platform: Platform) -> None:
    operations = Operations(Requester(platform.client))
    with pytest.raises(Invalid, match=r"^run_at: Expected a time with a timezone component"):
        await operations.create(
            "records.insert",
            Record("a", "b"),
            user_id="ada",
            run_at=datetime(2020, 1, 1),  # noqa: DTZ001 (the point)
        )
    assert (await platform.event_log.end("BATCH")).sequence == 0


async def test_the_earliest_time_there_is_does_not_wait(office: Office) -> None:
    batch = await office.submit(records([1]), run_at="0001-01-01T14:00:01+14:00")
    over = await office.over(batch["id"], "COMPLETED")
    assert over["run_at"] == "0001-01-01T00:00:01Z"


async def test_a_bad_row_rejects_the_batch_if_that_was_wanted(office: Office) -> None:
    batch = await office.submit("key,value\n1,2\n,3\n", on_invalid="reject")
    over = await office.over(batch["id"], "FAILED")
    assert "nothing ran" in over["detail"]
    assert await office.keys() == []


async def test_tickets_are_listed_in_bulk_by_the_service_that_owns_them(
    office: Office, platform: Platform, home: Path
) -> None:
    body = "title,price,currency,quantity\n" + "".join(f"Show {n},2500,EUR,10\n" for n in range(1200))
    create = {"kind": "tickets.create"}
    answer = await office.ask("POST", "/api/batches", params=create, content=body.encode(), headers=CSV)
    assert answer.status_code == 202, answer.text  # nobody answers for tickets yet: it waits
    async with ServiceProcess("tickets", platform.settings, home) as tickets:
        batch = await office.over(answer.json()["id"], "COMPLETED", 120)
        assert batch["counts"]["succeeded"] == 1200
        operations = await office.ask("GET", f"/api/batches/{batch['id']}/operations", params={"limit": "1000"})
        listed = {operation["output"] for operation in operations.json()["items"]}
        assert len(listed) == 1000
        ticket_id = listed.pop()
        async with httpx.AsyncClient(timeout=10) as http:

            async def seller() -> Any:
                return (await http.get(f"{tickets.url}/api/tickets/{ticket_id}")).json().get("seller_id")

            await eventually(seller, "ada")
        change = f"ticket_id,price\n{ticket_id},1900\n"
        update = {"kind": "tickets.update"}
        foreign = await office.ask("POST", "/api/batches", params=update, content=change.encode(), headers=CSV, who=EVE)
        path = f"/api/batches/{foreign.json()['id']}"

        async def status() -> Any:
            return (await office.ask("GET", path, who=EVE)).json()["status"]

        await eventually(status, "FAILED")
        (failed,) = (await office.ask("GET", f"{path}/operations", who=EVE)).json()["items"]
        assert failed["error"] == f"You have no ticket {ticket_id} on sale."


async def command(office: Office, *arguments: str, user: str = "ada") -> tuple[int, str]:
    """`boxoffice batch` as `user`: its exit code and what it says."""
    words = ("batch", "--url", office.process.url, "--user", user, *arguments)
    code, said, _ = await ran(words, {**os.environ, "COLUMNS": "200"})
    return code, said.decode()


async def test_a_kind_is_paused_and_resumed_from_the_command_line(office: Office) -> None:
    code, said = await command(office, "pause", "records.insert")
    assert (code, "This is for operators, and you are seller" in said) == (1, True)
    code, said = await command(office, "pause", "records.insert", user="operator")
    assert (code, "records.insert" in said, "paused" in said) == (0, True, True)
    batch = await office.submit(records(range(3)))
    await eventually(lambda: status_of(office, batch["id"]), "RUNNING")
    assert "boxoffice batch resume records.insert" in (await command(office, "show", batch["id"]))[1]
    code, said = await command(office, "resume", "records.insert", user="operator")
    assert (code, "running" in said) == (0, True)
    await office.over(batch["id"], "COMPLETED")
    _, said = await command(office, "kinds")
    assert "tickets.create" in said
    assert "max_per_order" in said


async def test_a_file_is_handed_in_watched_and_reported_from_the_command_line(office: Office, home: Path) -> None:
    file = home / "records.csv"
    file.write_text(records(range(1200)) + ",no key\n")
    code, said = await command(office, "submit", str(file), "--kind", "records.insert")
    assert code == 1
    assert "1,200 succeeded  0 failed  0 cancelled  0 pending  1 refused" in said
    assert "row 1201: key: " in said
    (batch,) = (await office.ask("GET", "/api/batches")).json()["items"]
    assert said.lstrip().startswith(f"taken in as {batch['id']}\n")
    assert batch["id"] in (await command(office, "ls"))[1]
    assert "COMPLETED_WITH_ERRORS" in (await command(office, "show", batch["id"]))[1]
    code, said = await command(office, "report", batch["id"])
    assert (code, len(list(csv.DictReader(io.StringIO(said))))) == (0, 1201)
    code, said = await command(office, "retry", batch["id"])
    assert (code, "no operation of it failed" in said) == (1, True)
    file.write_text(records(range(2000, 2010)))
    code, said = await command(office, "submit", str(file), "--kind", "records.insert")
    assert (code, "10 succeeded" in said) == (0, True)
    code, said = await command(office, "submit", str(file), "--kind", "seats.fly")
    assert (code, "There is no kind 'seats.fly'" in said) == (1, True)
    await office.process.kill()
    code, said = await command(office, "ls")
    assert (code, "does not answer" in said, "batch   " in said) == (1, True, False)


async def test_the_bad_rows_of_a_file_are_mended_and_handed_in_again(office: Office, home: Path) -> None:
    file, mended = home / "records.csv", home / "mended.csv"
    file.write_text('key,value\n1,"two\nlines"\n\n1,"taken\ntoo"\n2,v\n,"no\nkey"\n3,v')
    code, said = await command(office, "submit", str(file), "--kind", "records.insert")
    assert (code, "3 succeeded  1 failed  0 cancelled  0 pending  1 refused" in said) == (1, True)
    (batch,) = (await office.ask("GET", "/api/batches")).json()["items"]
    code, _ = await command(office, "bad", batch["id"], str(file), "-o", str(mended))
    assert (code, mended.read_text()) == (0, 'key,value\n1,"taken\ntoo"\n,"no\nkey"\n')
    code, said = await command(office, "bad", batch["id"], str(mended))
    assert (code, "it is not the file that was handed in" in said) == (1, True)
    mended.write_text(mended.read_text().replace("\n1,", "\n4,").replace("\n,", "\n5,"))
    code, said = await command(office, "submit", str(mended), "--kind", "records.insert")
    assert (code, "2 succeeded" in said) == (0, True)
    assert sorted(await office.keys()) == ["1", "2", "3", "4", "5"]


async def test_the_rows_that_a_cancel_kept_from_running_are_to_be_had(office: Office, home: Path) -> None:
    file, rest = home / "records.csv", home / "rest.csv"
    file.write_text("key,value\n1,v\n,no key\n2,v\n")
    later = ("--run-at", (now() + timedelta(days=30)).isoformat())
    assert (await command(office, "submit", str(file), "--kind", "records.insert", *later, "--no-watch"))[0] == 0
    (batch,) = (await office.ask("GET", "/api/batches")).json()["items"]
    assert (await command(office, "cancel", batch["id"]))[0] == 0
    await office.over(batch["id"], "CANCELLED")
    code, _ = await command(office, "bad", batch["id"], str(file), "-o", str(rest))
    assert (code, rest.read_text()) == (0, file.read_text())


async def test_what_failed_has_still_failed_when_its_retry_is_cancelled(office: Office) -> None:
    await office.over((await office.submit(records([7])))["id"], "COMPLETED")
    batch = await office.submit(records([7, 8]))
    first = await office.over(batch["id"], "COMPLETED_WITH_ERRORS")
    path = "/api/batch-kinds/records.insert"
    assert (await office.ask("POST", f"{path}/pause", who=OPERATOR)).status_code == 200
    retried = (await office.ask("POST", f"/api/batches/{batch['id']}/retry")).json()
    assert (retried["status"], retried["written"]["report"]) == ("RUNNING", 1)
    assert (await office.ask("POST", f"/api/batches/{batch['id']}/cancel")).status_code == 200
    again = await office.over(batch["id"], "COMPLETED_WITH_ERRORS")
    assert again["counts"] == first["counts"]
    assert (await office.ask("POST", f"{path}/resume", who=OPERATOR)).status_code == 200
    await mend(office)
    assert (await office.ask("POST", f"/api/batches/{batch['id']}/retry")).status_code == 202
    assert (await office.over(batch["id"], "COMPLETED"))["counts"]["succeeded"] == 2


async def test_what_a_retry_has_mended_is_no_longer_told(office: Office) -> None:
    await office.over((await office.submit(records([7])))["id"], "COMPLETED")
    batch = await office.submit(records(range(10)) + ",no key\n")
    await office.over(batch["id"], "COMPLETED_WITH_ERRORS")
    _, said = await command(office, "show", batch["id"])
    assert "row 8: There is a record '7' already." in said
    assert "row 11: key: " in said
    await mend(office)
    _, said = await command(office, "retry", batch["id"])
    assert "10 succeeded  0 failed" in said
    assert "row 8" not in said
    assert "row 11: key: " in said
    assert "more" not in said


async def test_a_retry_is_answered_as_it_is_although_the_read_model_stands_still(office: Office) -> None:
    await office.over((await office.submit(records(["7"])))["id"], "COMPLETED")
    batch = await office.submit(records(["7"]))
    await office.over(batch["id"], "FAILED")
    connection = await asyncpg.connect(office.database_url)
    try:
        async with connection.transaction():
            await connection.execute("lock table batch.batches in share mode")  # it can be read as it was
            answer = await office.ask("POST", f"/api/batches/{batch['id']}/retry")
            assert (answer.status_code, answer.json()["completed_at"]) == (202, None)
    finally:
        await connection.close()


async def test_a_retry_ends_as_handing_in_does(office: Office) -> None:
    await office.over((await office.submit(records([7])))["id"], "COMPLETED")
    batch = await office.submit(records(range(10)))
    await office.over(batch["id"], "COMPLETED_WITH_ERRORS")
    code, said = await command(office, "retry", batch["id"])
    assert (code, "9 succeeded  1 failed" in said) == (1, True)
    assert (await command(office, "show", batch["id"]))[0] == 0
    await mend(office)
    code, said = await command(office, "retry", batch["id"])
    assert (code, "10 succeeded  0 failed" in said) == (0, True)


async def test_a_cursor_that_is_none_is_told_what_one_is(office: Office) -> None:
    batch = await office.submit(records([1]))
    answer = await office.ask("GET", f"/api/batches/{batch['id']}/operations", params={"cursor": "second"})
    assert answer.status_code == 400
    assert "Expected a `next_cursor` that a list gave" in answer.json()["detail"]


async def test_a_kind_comes_from_a_package_of_its_own_as_the_docstring_shows(platform: Platform, home: Path) -> None:
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", kinds.__doc__ or "", re.MULTILINE)
    code, project = (dedent(block) for block in blocks if block.strip())
    source, package = home / "seats", home / "plugin"
    source.mkdir()
    (source / "seats.py").write_text(code)
    (source / "pyproject.toml").write_text(project)
    quietly = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-index", "--no-build-isolation")
    install = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pip", "install", *quietly, "--target", str(package), str(source))
    )
    assert await install.wait() == 0
    settings = platform.settings
    named = {"BOXOFFICE_NATS_URL": settings.nats_url, "BOXOFFICE_DATABASE_URL": settings.database_url}
    with_plugin = {"PYTHONPATH": str(package)}
    migrate = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli.main", "migrate"), env={**os.environ, **named, **with_plugin}
    )
    assert await migrate.wait() == 0
    async with (
        ServiceProcess("batch", settings, home, **with_plugin) as process,
        httpx.AsyncClient(timeout=30) as http,
    ):
        office = Office(process, http, settings.database_url)
        there_are = (await office.ask("GET", "/api/batch-kinds")).json()
        (kind,) = [kind for kind in there_are if kind["name"] == "seats.reserve"]
        assert kind["about"] == "Reserves seats by row and number."
        rows = "row,number\n" + "".join(f"A,{n}\n" for n in range(1, 101)) + "A,7\nA,x\n"
        answer = await office.ask(
            "POST", "/api/batches", params={"kind": "seats.reserve"}, content=rows.encode(), headers=CSV
        )
        batch = await office.over(answer.json()["id"], "COMPLETED_WITH_ERRORS")
        counts = batch["counts"]
        assert (counts["succeeded"], counts["failed"], counts["refused"]) == (100, 1, 1)
        report = {row["row"]: row for row in await office.report(batch["id"])}
        assert report["7"]["output"] == "A7"
        assert "already exists" in report["101"]["error"]
        assert report["102"]["error"].startswith("number: ")


async def test_another_service_hands_in_single_operations(office: Office, platform: Platform) -> None:
    operations = Operations(Requester(platform.client))
    request_id = uuid4()
    record = Record("from another", "service")
    first = await operations.create("records.insert", record, user_id="ada", request_id=request_id)
    again = await operations.create("records.insert", record, user_id="ada", request_id=request_id)
    assert first.id == again.id
    for another in (Record("another", "service"), Record("from another", "town")):
        with pytest.raises(Invalid, match="Idempotency-Key"):
            await operations.create("records.insert", another, user_id="ada", request_id=request_id)

    async def status() -> str:
        return (await operations.get(first.id, user_id="ada")).status

    await eventually(status, "succeeded")
    with pytest.raises(NotFound):
        await operations.get(first.id, user_id="eve")
    with pytest.raises(NotFound, match=r"seats.fly.*records.insert"):
        await operations.create("seats.fly", record, user_id="ada")
    assert await office.keys() == ["from another"]

    for nobody in ("", "a\0b", "x" * 100_000):
        with pytest.raises(Invalid, match=r"^user_id: "):
            await operations.create("records.insert", Record("of nobody", "v"), user_id=nobody)
    await office.over((await office.submit(records([1])))["id"], "COMPLETED")  # read models go on


@pytest.mark.usefixtures("office")
async def test_single_operations_are_handed_in_as_the_readme_shows(platform: Platform, home: Path) -> None:
    readme = Path(common.__file__).with_name("README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (home / "greet.py").write_text(code)

    async def greet() -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(home / "greet.py")),
            env={**os.environ, "BOXOFFICE_NATS_URL": platform.settings.nats_url},
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await asyncio.wait_for(process.communicate(), 60)
        return said.decode().strip()

    assert await greet() == "succeeded"
    assert await greet() == "failed There is a record 'greeting' already."


@pytest.mark.parametrize("kills", [2, pytest.param(6, marks=pytest.mark.faults)])
async def test_whatever_is_killed_every_operation_is_executed_once(platform: Platform, home: Path, kills: int) -> None:
    total = 20_000
    async with AsyncExitStack() as stack:
        fast = {"BOXOFFICE_BATCH_LIMIT": "200"}
        replicas = [
            await stack.enter_async_context(ServiceProcess("batch", platform.settings, home, **fast)) for _ in range(2)
        ]
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30))
        office = Office(replicas[0], http, platform.settings.database_url)
        rows = [*range(total), *range(0, total, 1000)]  # 20 keys come twice
        batch = await office.submit(records(rows))
        for turn in range(kills):
            before = len(await office.keys())
            office.process = replicas[(turn + 1) % 2]
            await replicas[turn % 2].kill()
            await replicas[turn % 2].start()

            async def further(before: int = before) -> bool:
                return len(await office.keys()) > before or before >= total

            await eventually(further, True, 60)
        over = await office.over(batch["id"], "COMPLETED_WITH_ERRORS", 120)
        assert (over["counts"]["succeeded"], over["counts"]["failed"]) == (total, 20)
        keys = Counter(await office.keys())
        assert keys == Counter(map(str, range(total)))
        report = Counter(row["row"] for row in await office.report(batch["id"]))
        assert report == Counter(str(row) for row in range(1, len(rows) + 1))
