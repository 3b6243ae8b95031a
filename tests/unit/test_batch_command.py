"""What the command line reads of a report."""

import csv
import io
from collections.abc import AsyncIterator

from hypothesis import example, given
from hypothesis import strategies as st

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
