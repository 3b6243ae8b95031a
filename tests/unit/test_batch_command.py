"""What the command line reads of a report, and what it makes of answers that are lost."""

import csv
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from services.cli import batch
from services.cli.batch import rows_of


@given(st.lists(st.text(st.sampled_from('a",\r\né'), max_size=8), max_size=5), st.integers(1, 9))
@example(["a\r\nb", 'says "no"\n', "\r"], 1)
async def test_a_report_is_read_whatever_is_in_a_cell_and_wherever_it_is_cut(errors: list[str], size: int) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["row", "error", "output"], *([n, error, ""] for n, error in enumerate(errors))])
    content = text.getvalue().encode()

    async def blocks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), size):
            yield content[start : start + size]

    rows = [row async for row in rows_of(blocks())]
    assert rows == [{"row": str(n), "error": error, "output": ""} for n, error in enumerate(errors)]


async def test_an_upload_whose_answer_is_lost_is_asked_for_and_one_that_broke_off_is_handed_in_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "PAUSE", 0)
    file = tmp_path / "seats.csv"
    file.write_text("key,value\na,b\n")
    keys: list[str] = []
    answers: Iterator[httpx.Response | Exception] = iter(
        [
            httpx.ReadError("cut"),
            httpx.Response(409, json={"batch_id": "1"}),  # it still comes in, as far as is known
            httpx.Response(409, json={"batch_id": "1"}),
            httpx.Response(202, json={"id": "2"}),
        ]
    )
    statuses = iter(["PENDING", "FAILED"])

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"status": next(statuses)})
        keys.append(request.headers["Idempotency-Key"])
        await request.aread()
        match next(answers):
            case httpx.Response() as response:
                return response
            case error:
                raise error

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://shop") as http:
        taken = await batch.Batches(http, Console(quiet=True)).submit(file, "records.insert", {})
    assert taken == {"id": "2"}
    assert [keys.index(key) for key in keys] == [0, 0, 0, 3]
