"""What a file that comes in any parts is read as: every row as Python's `csv` has it, each fault where it is."""

import csv
import io
import json
import re
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Meta

from common.errors import Invalid
from common.events import Operation, RefusedRow
from services.batch.kinds_records import Record
from services.batch.upload import LIMITS, Limits, MediaType, Pieces, Read, operations_in, operations_of, rows_as_sent

CSV: MediaType = "text/csv"
NDJSON: MediaType = "application/x-ndjson"
MEDIA_TYPES: tuple[MediaType, ...] = (CSV, NDJSON)
AT_ONCE = Limits(wait=4)
"""Reads whatever has come, so that each cut is one between blocks too."""
SMALL = Limits(wait=4, row=12)


class Seat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    title: str
    price: Annotated[int, Meta(ge=0, le=1000)]
    block: Literal["A", "B"] = "A"
    share: float | None = None
    opens_at: datetime | None = None


class Pair(msgspec.Struct, frozen=True):
    """Takes any text."""

    a: str = ""
    b: str = ""


async def read(
    content: bytes | Iterable[bytes],
    media_type: MediaType,
    operation: type[msgspec.Struct] = Seat,
    limits: Limits = AT_ONCE,
) -> Read:
    """All that is read of a file that comes in these parts."""

    async def body() -> AsyncIterator[bytes]:
        for part in [content] if isinstance(content, bytes) else content:
            yield part

    operations, refused = list[Operation](), list[RefusedRow]()
    async for some, others in operations_in(body(), media_type, operation, limits):
        assert some or others
        operations += some
        refused += others
    return operations, refused


async def seats(content: str, media_type: MediaType = CSV) -> list[Seat]:
    """A file without a fault."""
    operations, refused = await read(content.encode(), media_type)
    assert not refused
    assert [operation.number for operation in operations] == list(range(1, len(operations) + 1))
    return [msgspec.json.decode(operation.payload, type=Seat) for operation in operations]


async def refusals(content: str | bytes, media_type: MediaType = CSV) -> list[RefusedRow]:
    """The rows that are refused between a good first one and a good last one, which are not."""
    operations, refused = await read(content.encode() if isinstance(content, str) else content, media_type)
    last = len(operations) + len(refused)
    assert {operations[0].number, operations[-1].number} == {1, last}
    assert sorted([o.number for o in operations] + [row.number for row in refused]) == list(range(1, last + 1))
    return refused


def cut(content: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The content in parts that end at these bytes."""
    ends = sorted({at % (len(content) + 1) for at in cuts})
    return [content[begin:end] for begin, end in zip([0, *ends], [*ends, len(content)], strict=True)]


any_time = settings(deadline=None)
CUTS = st.lists(st.integers(0, 10_000), max_size=20)


# What is read


async def test_columns_come_in_any_order_and_become_the_types_of_the_fields() -> None:
    assert await seats("price,opens_at,title,share\n5,2030-01-31T20:00:00Z,Opening night,0.5\n") == [
        Seat("Opening night", 5, share=0.5, opens_at=datetime(2030, 1, 31, 20, tzinfo=UTC))
    ]


async def test_an_empty_cell_leaves_its_field_out() -> None:
    assert await seats("title,price,block,share\nx,1,,\n") == [Seat("x", 1)]


async def test_a_byte_order_mark_is_no_part_of_a_file() -> None:
    assert await seats('\ufeff"title",price\nx,1\n') == [Seat("x", 1)]
    assert await seats('\ufeff{"title":"x","price":1}\n', NDJSON) == [Seat("x", 1)]


async def test_lines_may_end_as_on_any_system_and_the_last_one_not_at_all() -> None:
    assert await seats("title,price\r\nx,1\r\ny,2") == [Seat("x", 1), Seat("y", 2)]
    assert await seats("title,price\nx,1\ny,2") == [Seat("x", 1), Seat("y", 2)]
    assert await seats('{"title":"x","price":1}\r\n{"title":"y","price":2}', NDJSON) == [Seat("x", 1), Seat("y", 2)]


async def test_a_whole_number_of_ndjson_may_be_written_with_a_point() -> None:
    assert await seats('{"title":"x","price":1.0}\n', NDJSON) == [Seat("x", 1)]


async def test_blank_lines_are_no_rows() -> None:
    assert await seats("\ntitle,price\n\nx,1\r\n\r\n\ny,2\n\n") == [Seat("x", 1), Seat("y", 2)]
    assert await seats('\n{"title":"x","price":1}\n \r\n{"title":"y","price":2}\n\n', NDJSON) == [
        Seat("x", 1),
        Seat("y", 2),
    ]


async def test_a_value_in_quotes_may_hold_commas_quotes_and_lines() -> None:
    assert await seats('title,price\n"A ""big"", loud\r\n\nshow\n",1\n') == [Seat('A "big", loud\r\n\nshow\n', 1)]


async def test_the_names_in_a_header_may_be_padded() -> None:
    assert await seats("title, price\nx,1\n") == [Seat("x", 1)]


async def test_a_payload_is_the_checked_operation_as_json() -> None:
    operations, _ = await read(b'{"price": 7, "share": null, "title": "\\u0078"}\n', NDJSON)
    assert [bytes(operation.payload) for operation in operations] == [b'{"title":"x","price":7}']


async def test_a_list_of_json_values_is_checked_as_the_lines_of_a_file_are() -> None:
    lines = ['{"title":"x","price":1}', '{"title":"x","price":"1"}', "7", '{"title":"y","price":2}']
    raws = [msgspec.Raw(line.encode()) for line in lines]
    assert operations_of(raws, Seat) == await read("\n".join(lines).encode(), NDJSON)
    huge = msgspec.Raw(b'{"title":"%b","price":1}' % (b"x" * LIMITS.row))
    assert operations_of([huge], Seat) == ([], [RefusedRow(1, None, "Larger than 65,536 bytes")])


def test_rows_are_found_again_in_the_file_as_they_were_sent() -> None:
    content = b'\xef\xbb\xbf"a",b\r\n1,"two\r\nlines"\r\n\r\ncaf\xe9,"a "bad" quote"\n3,4'
    assert list(rows_as_sent(io.BytesIO(content), CSV)) == [
        b'"a",b\r\n',
        b'1,"two\r\nlines"\r\n',
        b'caf\xe9,"a "bad" quote"\n',
        b"3,4",
    ]
    assert list(rows_as_sent(io.BytesIO(b'{"a":"\xe9"}\n \n{"b\n7'), NDJSON)) == [b'{"a":"\xe9"}\n', b'{"b\n', b"7"]


async def test_rows_are_read_while_the_rest_is_still_to_come() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"title,price\n" + b"x,1\n" * LIMITS.wait
        raise ConnectionAbortedError

    reading = operations_in(body(), CSV, Seat)
    operations, _ = await anext(reading)
    assert len(operations) == LIMITS.wait
    with pytest.raises(ConnectionAbortedError):
        await anext(reading)


# The same in whatever parts it comes

NASTY = (
    '\ufeff"title",price\r\n"one\r\ntwo ""x"", ü",1\r\n\r\n"",2\n'
    'three "3"" inch",3\n"four"4,4\n"five\n",\n\n€,6,\n"7",7'
).encode()
NASTY_LINES = (
    '\ufeff{"title":"ü","price":1}\r\n\n{"title":"x"}\n{"title":"x","price":1}}\n[]\n {"title":"€","price":2}'
).encode()


@pytest.mark.parametrize(("media_type", "content"), [(CSV, NASTY), (NDJSON, NASTY_LINES)])
async def test_a_file_is_the_same_wherever_it_is_cut(media_type: MediaType, content: bytes) -> None:
    whole = await read(content, media_type)
    assert all(whole)
    for at in range(len(content)):
        assert await read(cut(content, [at]), media_type) == whole
    assert await read(cut(content, range(len(content))), media_type) == whole
    assert await read(cut(content, range(0, len(content), 5)), media_type) == whole
    assert await read(content, media_type, limits=LIMITS) == whole


@any_time
@given(
    st.lists(st.tuples(st.text(), st.text()), min_size=1),
    # quoting as little as it can, Python 3.11 forgets a "\r" where lines end in "\n"
    st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_ALL), ("\n", csv.QUOTE_ALL)]),
    CUTS,
)
async def test_what_the_csv_module_writes_is_read(
    rows: list[tuple[str, str]], style: tuple[str, Literal[0, 1]], cuts: list[int]
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=style[0], quoting=style[1]).writerows([("a", "b"), *rows])
    operations, refused = await read(cut(text.getvalue().encode(), cuts), CSV, Pair)
    assert [msgspec.json.decode(operation.payload, type=Pair) for operation in operations] == [Pair(*r) for r in rows]
    assert not refused


def as_the_csv_module_reads(content: bytes, most: int) -> list[list[str] | None]:
    """All rows, None for those that are refused. Raises csv.Error for a file that ends in a quoted value."""
    lines = list(io.StringIO(content.decode(errors="surrogateescape")))
    reader = csv.reader(lines, strict=True)
    rows, begin = list[list[str] | None](), 0
    while begin < len(lines):
        row: list[str] | None
        try:
            row = next(reader)
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise
            row = None
        size = len("".join(lines[begin : reader.line_num]).encode(errors="surrogateescape"))
        if row is None or len(row) not in (0, 2) or size > most or not "".join(row).isascii():
            rows.append(None)
        elif row:
            rows.append(row)
        begin = reader.line_num
    return rows


@any_time
@given(st.text('a,"\r\n\udcff', max_size=60), CUTS, st.sampled_from([AT_ONCE, SMALL]))
@example('"a\nb\nc\nd\ne\nf",1\na,b', [], SMALL)  # too large, with lines of its own
@example('a,b\n"a""a""a""a""a""a",1\na,b', [17, 18, 19], SMALL)
@example('a,b\n"a\na,b\na,b\na,b\na,b', [], SMALL)  # never closed
@example('"aaaaaaaaaaaaa"a,"\na,b', [], SMALL)  # broken, and nothing opens after that
@example('aaaaaaaaaaaaaaaa,"\n",a\na,b', [21], SMALL)  # a value opens where a block does
async def test_any_bytes_are_the_rows_and_the_faults_that_they_are_to_the_csv_module(
    text: str, cuts: list[int], limits: Limits
) -> None:
    content = b"a,b\n" + text.encode(errors="surrogateescape")
    try:
        wanted = as_the_csv_module_reads(content + b"\n", limits.row)[1:]
    except csv.Error:
        with pytest.raises(Invalid, match="never closed"):
            await read(cut(content, cuts), CSV, Pair, limits)
        return
    _, *as_sent = rows_as_sent(io.BytesIO(content), CSV, limits)
    for row, sent in zip(wanted, as_sent, strict=True):
        assert row is None or [row] == list(csv.reader([sent.decode()]))
    if not any(wanted):
        with pytest.raises(Invalid, match="be read" if wanted else "only a header"):
            await read(cut(content, cuts), CSV, Pair, limits)
        return
    operations, refused = await read(cut(content, cuts), CSV, Pair, limits)
    got: dict[int, Sequence[str] | None] = dict.fromkeys(row.number for row in refused)
    for operation in operations:
        pair = msgspec.json.decode(operation.payload, type=Pair)
        got[operation.number] = [pair.a, pair.b]
    assert got == dict(enumerate(wanted, 1))


class Anything(msgspec.Struct, frozen=True):
    """A field of every type."""

    text: str = ""
    number: int | None = None
    part: float = 0
    amount: Decimal = Decimal()
    yes: bool = False
    at: datetime | None = None
    either: bool | float | datetime | None = None
    item: UUID | None = None
    some: list[int] = []
    more: dict[str, Any] = {}
    what: Any = None


FIELDS = tuple(field.name for field in msgspec.structs.fields(Anything))
CELLS = st.one_of(
    st.text(),
    st.sampled_from(["nan", "-inf", "Infinity", "null", "1e999", "9" * 5000, "1e300", "-1", "2030", "true"]),
    st.floats().map(str),
    st.integers().map(str),
    st.datetimes().map(str),
    st.uuids().map(str),
)


@any_time
@given(st.dictionaries(st.sampled_from(FIELDS), CELLS, min_size=1))
async def test_whatever_is_in_a_cell_what_is_taken_is_an_operation(cells: dict[str, str]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([cells.keys(), cells.values(), cells.keys()])
    operations, refused = await read(
        text.getvalue().encode() if any(cells.values()) else b"text\nx\ny\n", CSV, Anything
    )
    assert {operation.number for operation in operations} | {row.number for row in refused} == {1, 2}
    assert {row.column for row in refused} <= set(FIELDS)
    for operation in operations:
        msgspec.json.decode(operation.payload, type=Anything)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@any_time
@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES).map(lambda value: json.dumps(value).encode()) | st.binary()
)
@example(b'{"text":"\\udc80"}')
@example(b'{"text":"\\ud800\\ud800"}')
@example(b'{"what":%b}' % (b"9" * 5000))
@example(b'{"what":"\xff"}')
@example(b'{"what":%b}' % (b"[" * 30_000))
async def test_whatever_is_on_a_line_what_is_taken_is_an_operation(line: bytes) -> None:
    line = line.replace(b"\n", b" ").removeprefix(b"[")
    operations, refused = await read(b'{"text":"first"}\n' + line, NDJSON, Anything)
    assert len(operations) + len(refused) == 1 + bool(line.strip())
    for operation in operations:
        msgspec.json.decode(operation.payload, type=Anything)


# What is wrong with a row

QUOTE = (
    'A quote (") in {} of the file neither opens nor closes a value: put the value in quotes, and write each quote '
    'that belongs to it twice ("").'
)
BAD_ROWS: dict[str, tuple[str | bytes, str | None, str]] = {
    "a word for a number": ("x,many,", "price", 'Expected a whole number, got "many"'),
    "a space before a number": ("x, 5,", "price", 'Expected a whole number, got " 5"'),
    "a number that is too large": ("x,2000,", "price", 'Expected a whole number of at most 1000, got "2000"'),
    "a required value that is missing": ("x,,", "price", "Required"),
    "a choice that there is not": ("x,1,C", "block", 'Expected one of A, B, got "C"'),
    "a cell too few": ("x,1", None, "Expected 3 cells as in the header, got 2"),
    "a cell too many": ("x,1,A,", None, "Expected 3 cells as in the header, got 4"),
    "another encoding": (b"caf\xe9,1,A", "title", "Not UTF-8 (byte 0xE9): save the file as CSV in UTF-8"),
    "another encoding of a number": (b"x,\xb2,A", "price", "Not UTF-8 (byte 0xB2): save the file as CSV in UTF-8"),
    "text after a quote": (
        '"Big" show,1,A',
        None,
        QUOTE.format("line 3"),
    ),
    "text after a quote lines later": (
        '"Big\n\nshow"s,1,A',
        None,
        QUOTE.format("lines 3 to 5"),
    ),
    "an old line end": (
        "x,1,A\ry,2,B",
        None,
        "A carriage return stands alone in line 3 of the file: lines end in LF or CRLF.",
    ),
    "a row that is too large": (
        "x" * LIMITS.row + ",1,A",
        None,
        "Larger than 65,536 bytes; it begins in line 3 of the file",
    ),
    "a row of many lines that is too large": (
        '"' + "x,1,A\n" * 20_000 + '",1,A',
        None,
        'Larger than 65,536 bytes; it begins in line 3 of the file. Is a quote (") in it never closed?',
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
async def test_a_bad_row_of_csv_is_refused_and_the_rest_goes_on(case: str) -> None:
    row, column, reason = BAD_ROWS[case]
    row = row.encode() if isinstance(row, str) else row
    content = b"title,price,block\nfirst,1,A\n" + row + b"\nlast,1,B\n"
    assert await refusals(content) == [RefusedRow(2, column, reason)]


@pytest.mark.parametrize("size", [10, LIMITS.row])
async def test_a_row_of_many_lines_does_not_mislead_about_the_lines_after_it(size: int) -> None:
    content = 'title,price\nx,1\n"{}",1,\n"y"y,1\nx,1\n'.format("\n" * size)
    _, broken = await refusals(content)
    assert broken == RefusedRow(3, None, QUOTE.format(f"line {size + 4:,}"))


@pytest.mark.parametrize("cell", ["nan", "inf", "-Infinity"])
async def test_what_is_no_number_to_json_is_none_in_csv_either(cell: str) -> None:
    content = f"title,price,share\nfirst,1,0.5\nx,1,{cell}\nlast,1,1\n"
    assert await refusals(content) == [RefusedRow(2, "share", f'Expected a finite number, got "{cell}"')]


async def test_a_year_is_not_taken_for_seconds_since_1970() -> None:
    content = "title,price,opens_at\nfirst,1,\nx,1,2030\nlast,1,2030-01-31T20:00:00Z\n"
    reason = 'Expected a time such as 2030-01-31T20:00:00Z, got "2030"'
    assert await refusals(content) == [RefusedRow(2, "opens_at", reason)]


@pytest.mark.parametrize("number", ["1e2", "1.0", "1E2", "+1", " 1", "1_0", "null", "true"])
async def test_a_whole_number_is_digits_and_perhaps_a_minus_sign(number: str) -> None:
    content = f"title,price\nfirst,0\nx,{number}\nlast,-0\n"
    assert await refusals(content) == [RefusedRow(2, "price", f'Expected a whole number, got "{number}"')]


class Optional(msgspec.Struct, frozen=True):
    """A field of every type that may be none, and one that may not."""

    title: str
    name: str | None = None
    number: int | None = None
    share: float | None = None
    at: datetime | None = None
    lasts: timedelta | None = None
    yes: bool | None = None
    item: UUID | None = None
    block: Literal["A", "B"] | None = None


@pytest.mark.parametrize("word", ["null", "NULL"])
@pytest.mark.parametrize("column", ["number", "share", "at", "lasts", "yes", "item", "block"])
async def test_the_word_null_is_a_word_and_only_an_empty_cell_is_none(column: str, word: str) -> None:
    content = f"title,name,{column}\nx,,\ny,{word},\nz,,{word}\n"
    operations, (refused,) = await read(content.encode(), CSV, Optional)
    whats = [msgspec.json.decode(operation.payload, type=Optional) for operation in operations]
    assert whats == [Optional("x"), Optional("y", name=word)]
    assert (refused.number, refused.column) == (3, column)
    assert refused.reason.startswith("Expected ")
    assert refused.reason.endswith(f', got "{word}"')
    assert "null`" not in refused.reason


async def test_a_duration_is_no_bare_number() -> None:
    operations, (refused,) = await read(b"title,lasts\nx,PT5M\ny,5\n", CSV, Optional)
    assert msgspec.json.decode(operations[0].payload, type=Optional).lasts == timedelta(minutes=5)
    assert refused == RefusedRow(2, "lasts", 'Expected a duration such as PT15M, got "5"')


BAD_LINES: dict[str, tuple[str | bytes, str | None, str]] = {
    "a text for a number": ('{"title":"x","price":"1"}', "price", 'Expected a whole number, got "1"'),
    "a number that is too large": (
        '{"title":"x","price":2000}',
        "price",
        "Expected a whole number of at most 1000, got 2000",
    ),
    "a field that is missing": ('{"title":"x"}', "price", "Required"),
    "a field that there is not": (
        '{"title":"x","price":1,"colour":"red"}',
        "colour",
        'Unknown; there are title, price, block, share, opens_at, got "red"',
    ),
    "a field that is there twice": ('{"title":"x","price":1,"price":2}', "price", "May be given once, is there twice"),
    "no object": ("7", None, "Expected an object, got 7"),
    "no JSON": ("x,1", None, "Not a JSON object: JSON is malformed: invalid character (byte 0)"),
    "half an object": ('{"title":"x"', None, "Not a JSON object: Input data was truncated"),
    "two objects": (
        '{"title":"x","price":1}{"title":"y","price":1}',
        None,
        "Not a JSON object: JSON is malformed: trailing characters (byte 24)",
    ),
    "another encoding": (b'{"title":"caf\xe9","price":1}', None, "Not UTF-8"),
    "lists in lists": ('{"title":' + "[" * 30_000 + "]" * 30_000 + "}", "title", "Expected text"),
    "a line that is too large": (
        '{"title":"' + "x" * LIMITS.row + '","price":1}',
        None,
        "Larger than 65,536 bytes; it begins in line 2 of the file",
    ),
}


@pytest.mark.parametrize("case", BAD_LINES)
async def test_a_bad_line_of_ndjson_is_refused_and_the_rest_goes_on(case: str) -> None:
    line, column, reason = BAD_LINES[case]
    line = line.encode() if isinstance(line, str) else line
    content = b'{"title":"first","price":1}\n' + line + b'\n{"title":"last","price":1}\n'
    assert await refusals(content, NDJSON) == [RefusedRow(2, column, reason)]


async def test_a_key_that_is_none_is_told_what_one_may_be() -> None:
    reason = 'Expected up to 200 characters without control characters, got "a\\u0000b"'
    assert operations_of([msgspec.Raw(b'{"key":"a\\u0000b","value":""}')], Record) == (
        [],
        [RefusedRow(1, "key", reason)],
    )


async def test_what_was_sent_is_not_told_again_at_length() -> None:
    content = f"title,price\nx,1\nx,{'9x' * 10_000}\nx,1\n{'y' * 10_000}\nx,1\n"
    content_of_json = '{"title":"x","price":1}\n{"%s":1}\n{"title":"x","price":1}' % ("y" * 10_000)
    for refused in await refusals(content), await refusals(content_of_json, NDJSON):
        assert refused
        assert all(len(row.reason) < 200 and len(row.column or "") <= 80 for row in refused)


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
async def test_a_row_may_be_as_large_as_it_may_be_and_not_a_byte_larger(media_type: MediaType) -> None:
    head, row = (b"title,price\n", b"%b,1\n") if media_type == CSV else (b"", b'{"title":"%b","price":1}\n')
    fill = LIMITS.row - len(row % b"")
    for before in (1, 2, 6, LIMITS.row):  # so that blocks end elsewhere in it
        first = row % (b"x" * before) if before < LIMITS.row else row % b"x" * 10_000
        content = head + first + row % (b"y" * fill) + row % (b"z" * (fill + 1)) + row % b"last"
        operations, refused = await read(content, media_type, limits=LIMITS)
        assert len(operations) == (3 if before < LIMITS.row else 10_002)
        assert [row.number for row in refused] == [len(operations)]


@pytest.mark.parametrize("begin", [b"", b'"'])
@pytest.mark.parametrize("media_type", MEDIA_TYPES)
async def test_a_row_of_ten_megabytes_costs_no_memory(media_type: MediaType, begin: bytes) -> None:
    part = b"x" * LIMITS.row
    good = b"x,1\n" if media_type == CSV else b'{"title":"x","price":1}\n'

    def parts() -> Iterable[bytes]:
        yield (b"title,price\n" if media_type == CSV else b"") + good + begin
        for _ in range(160):
            yield part
        yield begin + b"\n" + good

    tracemalloc.start()
    try:
        operations, refused = await read(parts(), media_type)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [operation.number for operation in operations] == [1, 3]
    assert [row.number for row in refused] == [2]
    assert peak < 1_000_000


async def test_a_long_file_is_read_in_little_memory() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"title,price\n"
        for _ in range(100):
            yield b"Opening night,7\n" * 500

    tracemalloc.start()
    try:
        count = 0
        async for operations, _ in operations_in(body(), CSV, Seat):
            count += len(operations)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 50_000
    assert peak < 5_000_000


# What is wrong with a file

THERE_ARE = "The columns of this kind: title (required), price (required), block, share, opens_at."
BAD_FILES: dict[str, tuple[MediaType, str | bytes, str]] = {
    "nothing": (CSV, "", "The file is empty: it needs a header, and a row for each operation. Its columns: title"),
    "blank lines": (CSV, "\n\r\n", "The file is empty"),
    "a byte order mark": (CSV, "\ufeff", "The file is empty"),
    "a header": (CSV, "title,price", "There is only a header: a row for each operation must follow it."),
    "a header and blank lines": (CSV, "title,price\n\n\n", "There is only a header"),
    "no lines": (NDJSON, "", "The file is empty: it needs a JSON object on a line for each operation."),
    "blank lines of NDJSON": (NDJSON, "\n  \n", "The file is empty"),
    "a header that lacks a column": (CSV, "title\nx\n", f'The header lacks "price". {THERE_ARE} It is the first line'),
    "a header with other columns": (
        CSV,
        "title,prize,price,Block,title\n",
        f'The header has the unknown "prize", "Block"; it repeats "title". {THERE_ARE}',
    ),
    "a column without a name": (CSV, "title,price,\nx,1,\n", 'The header has the unknown "".'),
    "a hundred other columns": (CSV, ",".join(map(str, range(100))), '"8", "9" and 90 more.'),
    "no header": (CSV, "Opening night,5\nLast night,7\n", 'The header lacks "title", "price"; it has the unknown "Op'),
    "semicolons": (
        CSV,
        "title;price\nx;1\n",
        'The header is one column, "title;price", with ";" in it: values must be separated by commas.',
    ),
    "tabs": (CSV, "title\tprice\nx\t1\n", 'with "\\t" in it: values must be separated by commas.'),
    "pipes": (CSV, "title|price\nx|1\n", 'with "|" in it: values must be separated by commas.'),
    "a header in another encoding": (CSV, b"title,pri\xe7e\nx,1\n", "The header is no text in UTF-8"),
    "UTF-16": (CSV, "title,price\n".encode("utf-16"), "This is text in UTF-16: save it as text in UTF-8"),
    "UTF-16 that does not say so": (CSV, "title,price\nx,1\n".encode("utf-16-le"), "The header is no text in UTF-8"),
    "a spreadsheet": (CSV, b"PK\x03\x04\x14\x00\n\x00", "This is a spreadsheet (.xlsx) or a ZIP archive: save it as"),
    "a compressed file": (NDJSON, b"\x1f\x8b\x08\n\x00", "This is compressed with gzip: save it as"),
    "a header without an end": (CSV, "title,price" * 10_000, "The header is larger than 65,536 bytes: the file must"),
    "a header in broken quotes": (CSV, '"title"x,price\nx,1\n', 'The header cannot be read. A quote (") in line 1'),
    "lines that end as they did long ago": (
        CSV,
        "title,price\rx,1\r",
        "The header cannot be read. A carriage return stands alone in line 1 of the file",
    ),
    "a quote that stays open": (
        CSV,
        'title,price\nx,1\n\ny,2\n"z,3\nx,4\n',
        'A quote (") that opens in row 3 (line 5 of the file) is never closed. Close it where its value ends; ',
    ),
    "a quote that stays open for long": (
        CSV,
        'title,price\n"x",1\ny,2\n"z,3\n' + "x,4\n" * 100_000,
        'A quote (") that opens in row 3 (line 4 of the file) is never closed.',
    ),
    "a quote that stays open in the header": (CSV, 'title,"price\nx,1\n', "opens in the header (line 1 of the file)"),
    "rows of which none can be read": (
        CSV,
        "title,price\nx;1\ny;2\n",
        "None of the 2 rows can be read. Row 1: Expected 2 cells as in the header, got 1",
    ),
    "a row that is the only one and cannot be read": (
        CSV,
        "title,price\nx;1\n",
        "The one row cannot be read. Row 1: Expected 2 cells as in the header, got 1",
    ),
    "CSV for NDJSON": (NDJSON, "title,price\nx,1\n", "None of the 2 rows can be read. Row 1: Not a JSON object"),
    "a JSON list": (
        NDJSON,
        '[{"title":"x","price":1}]',
        "This is one JSON document, not NDJSON: put each operation on",
    ),
    "a JSON object of several lines": (NDJSON, '{\n"title":"x",\n"price":1}', "This is one JSON document, not NDJSON"),
}


@pytest.mark.parametrize("case", BAD_FILES)
async def test_a_bad_file_is_refused_as_a_whole_and_says_why(case: str) -> None:
    media_type, content, says = BAD_FILES[case]
    content = content.encode() if isinstance(content, str) else content
    for limits in LIMITS, AT_ONCE:
        with pytest.raises(Invalid, match=re.escape(says)):
            await read(content, media_type, limits=limits)
    with pytest.raises(Invalid, match=re.escape(says)):
        await read(cut(content, range(min(len(content), 1000))), media_type)


async def test_rows_of_which_none_is_an_operation_are_each_refused() -> None:
    assert await read(b"title,price\nx,\ny,\n", CSV) == (
        [],
        [RefusedRow(1, "price", "Required"), RefusedRow(2, "price", "Required")],
    )


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
@pytest.mark.parametrize("last", [b"x,1\n", b"bad,row,\n", b"y" * 100])
async def test_a_file_may_have_so_many_rows_and_not_one_more(media_type: MediaType, last: bytes) -> None:
    limits = Limits(rows=5, row=64, wait=4)
    head, good = (b"title,price\n", b"x,1\n") if media_type == CSV else (b"", b'{"title":"x","price":1}\n')
    operations, _ = await read(head + good * 5 + b"\n\n", media_type, limits=limits)
    assert len(operations) == 5
    with pytest.raises(Invalid, match="There are more than 5 rows: split the file, and hand in each part by itself"):
        await read(head + good * 5 + last, media_type, limits=limits)


def test_a_million_rows_are_the_most_unless_somebody_says_otherwise() -> None:
    assert LIMITS.rows == 1_000_000


# Pieces


@any_time
@given(st.lists(st.lists(st.integers(2, 12))), st.integers(1, 5), st.integers(10, 30))
def test_pieces_hold_all_operations_in_order_and_are_as_full_as_they_may_be(
    sizes: list[list[int]], many: int, size: int
) -> None:
    pieces = Pieces(many, size)
    cut_up, handed_in = list[list[Operation]](), list[Operation]()
    for some in sizes:
        operations = [Operation(len(handed_in) + n, msgspec.Raw(b'"' * length)) for n, length in enumerate(some)]
        cut_up += pieces.add(operations)
        handed_in += operations
    cut_up += pieces.rest()
    assert [operation for piece in cut_up for operation in piece] == handed_in
    assert pieces.rest() == []

    def weight(piece: Iterable[Operation]) -> int:
        return sum(len(bytes(operation.payload)) for operation in piece)

    for piece in cut_up:
        assert 1 <= len(piece) <= many
        assert weight(piece) <= size or len(piece) == 1
    for piece, following in pairwise(cut_up):
        assert len(piece) == many or weight([*piece, following[0]]) > size


def test_a_piece_has_at_most_500_operations_and_512_kib() -> None:
    small = [Operation(n, msgspec.Raw(b"{}")) for n in range(1001)]
    large = [Operation(n, msgspec.Raw(b" " * 65_536)) for n in range(17)]
    for operations, lengths in (small, [500, 500, 1]), (large, [8, 8, 1]):
        pieces = Pieces()
        assert [len(piece) for piece in [*pieces.add(operations), *pieces.rest()]] == lengths
