"""Operations out of what somebody sends: a file while it streams, or JSON; checked row by row, and cut into pieces."""

import csv
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import lru_cache
from io import StringIO
from itertools import count
from math import isfinite
from typing import BinaryIO, ClassVar, Generic, Literal, TypeVar

import msgspec
from msgspec import inspect

from common.errors import Invalid
from common.events import Operation, RefusedRow
from common.explain import explain
from common.problems import BODY, BadRequest, clipped, decoded, found_in, shown

MediaType = Literal["text/csv", "application/x-ndjson"]
Read = tuple[list[Operation], list[RefusedRow]]
Row = TypeVar("Row")

SHOWN_NAMES = 10

TOGETHER = 100
"""Rows that are checked at once; one that is at fault has them checked one by one."""

BOM = b"\xef\xbb\xbf"
NOT_TEXT = {
    b"PK\x03\x04": "a spreadsheet (.xlsx) or a ZIP archive",
    b"\x1f\x8b": "compressed with gzip",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}
"""How files begin that are sent by mistake, and what they are."""

ALIEN = re.compile("[\udc80-\udcff]")
"""A byte that is no UTF-8, as the error handler `surrogateescape` carries it through text."""

WHOLE = re.compile("[-0-9]*")
"""What whole numbers are made of: of all that msgspec takes for one, `1e2` and `1.0` are not."""

encode = msgspec.json.Encoder().encode


class Limits(msgspec.Struct, frozen=True):
    """Rows of a file at most; bytes of a row at most, with its line end; bytes to wait for before rows are read."""

    rows: int = 1_000_000
    row: int = 64 * 1024
    wait: int = 4 * 1024


LIMITS = Limits()


class Place(Enum):
    """Where in a row of CSV a byte stands, as Python's `csv` has it when it is strict."""

    START = auto()  # of a value
    PLAIN = auto()  # in a value without quotes
    QUOTED = auto()  # in a value in quotes
    QUOTE = auto()  # after a quote in it: its end, or the first of two that stand for one
    LINE = auto()  # where quotes mean nothing (any more), up to the end of the line


# They step at once over bytes that change nothing: 10 MB of commas or quotes take no longer than other bytes.
PLAIN_END = re.compile(rb'[\r\n]|,(?:"|\Z)')
PLAIN_ENDS_IN = {b",": Place.START, b',"': Place.QUOTED, b"\r": Place.LINE}
QUOTED = re.compile(rb'[^"]*+(?:""[^"]*+)*+')


def end_of_row(data: bytes, place: Place) -> tuple[int, Place]:
    """How many bytes of `data` belong to the row that it begins in at `place`, -1 for all; and where in it they end."""
    at = 0
    while at < len(data):
        match place:
            case Place.START:
                quoted = data.startswith(b'"', at)
                at, place = at + quoted, Place.QUOTED if quoted else Place.PLAIN
            case Place.PLAIN:
                if not (end := PLAIN_END.search(data, at)):
                    return -1, place
                if end[0] == b"\n":
                    return end.end(), place
                at, place = end.end(), PLAIN_ENDS_IN[end[0]]
            case Place.QUOTED:
                if (end := QUOTED.match(data, at)) and end.end() < len(data):
                    at, place = end.end() + 1, Place.QUOTE
                else:
                    return -1, place
            case Place.QUOTE:
                if data.startswith(b'"', at):
                    at, place = at + 1, Place.QUOTED
                else:
                    place = Place.PLAIN if data.startswith((b",", b"\n"), at) else Place.LINE
            case Place.LINE:
                return data.find(b"\n", at) + 1 or -1, place
    return -1, place


explained = lru_cache(maxsize=1000)(explain)


def in_words(message: str, operation: type[msgspec.Struct]) -> tuple[list[str], str]:
    """As `explain` has it; a message names no row, so a fault that comes a million times is explained once."""
    return (explained if len(message) < 200 else explain)(message, operation)


class RowFault(Exception):
    """A row is no operation: in which column (None: in no single one), and why. `readable`: it has values."""

    def __init__(self, column: str | None, reason: str, *, readable: bool = False) -> None:
        super().__init__(reason)
        self.column = column and clipped(column)
        self.reason = reason
        self.readable = readable


def fault_of(column: str | None, message: str, got: str | None) -> RowFault:
    """A value that its field does not take."""
    return RowFault(column, message if got is None else f"{message}, got {got}", readable=True)


class Rows(ABC, Generic[Row]):
    """Reads rows out of blocks that are no larger than a row may be. It keeps at most one row and one block."""

    start: ClassVar[Place]

    def __init__(self, operation: type[msgspec.Struct], limits: Limits) -> None:
        self.operation = operation
        self.limits = limits
        self.number = 0  # of the last row that was read
        self.line = 1  # of the file, where `_kept` begins
        self._begun = False
        self._readable = False
        self._first_refused: RefusedRow | None = None
        self._kept = b""  # from the start of a row on
        self._skipping: Place | None = None  # where we are in a row that is too large
        self._skipped_from = 0  # the line where it begins

    def read(self, block: bytes) -> Read:
        """The rows that end in the next block. Raises Invalid."""
        if not self._begun:
            self._begun = True
            block = beginning(block)
        operations, refused = list[Operation](), list[RefusedRow]()
        data = self._from_row(self._kept + block, refused)
        end = data.rfind(b"\n") + 1
        rows, unfinished = self.split(data[:end])
        self._kept = data[end - len(unfinished) :]
        self.take(rows, operations, refused)
        self.line += data.count(b"\n", 0, len(data) - len(self._kept))
        if self.number > self.limits.rows:
            most = f"{self.limits.rows:,}"
            raise Invalid(f"There are more than {most} rows: split the file, and hand in each part by itself.")
        return operations, refused

    def _from_row(self, data: bytes, refused: list[RefusedRow]) -> bytes:
        """`data` from the start of a row that is not too large; the others are refused and left out."""
        if not self._kept and self._skipping is None:
            return data  # none is larger than a block
        end, place = end_of_row(data, self._skipping or self.start)
        if self._skipping is None:
            most = self.limits.row
            if 0 < end <= most or (end < 0 and len(data) < most):
                return data
            self._skipped_from = self.line
            self.number += 1
            refused.append(RefusedRow(self.number, None, self.too_large(data[:most])))
        self._skipping = place if end < 0 else None
        left_out = data if end < 0 else data[:end]
        self.line += left_out.count(b"\n")
        return data[len(left_out) :]

    def take(self, rows: Sequence[Row], operations: list[Operation], refused: list[RefusedRow]) -> None:
        """Read the next rows, each into one of the lists."""
        for start in range(0, len(rows), TOGETHER):
            some = rows[start : start + TOGETHER]
            if (payloads := self.payloads_of(some)) is not None:
                operations += map(Operation, count(self.number + 1), payloads)
                self.number += len(some)
            else:
                self._take_each(some, operations, refused)
        self._readable |= bool(operations)
        self._first_refused = self._first_refused or next(iter(refused), None)

    def _take_each(self, rows: Sequence[Row], operations: list[Operation], refused: list[RefusedRow]) -> None:
        for row in rows:
            self.number += 1
            try:
                operations.append(Operation(self.number, self.payload_of(row)))
            except RowFault as fault:
                refused.append(RefusedRow(self.number, fault.column, fault.reason))
                self._readable |= fault.readable

    def end(self) -> Read:
        """The rows that were left at the end of the file. Raises Invalid, also if nothing in the file can be read."""
        read = self.read(b"\n")
        if self._kept or self._skipping:
            opened = self._skipped_from if self._skipping else self.line
            row = self.number if self._skipping else self.number + 1
            raise Invalid(self.unclosed(row, opened))
        if not self.number:
            raise Invalid(self.nothing())
        if not self._readable and self._first_refused:
            first = self._first_refused
            none = "The one row cannot" if self.number == 1 else f"None of the {self.number:,} rows can"
            raise Invalid(f"{none} be read. Row {first.number}: {first.reason}")
        return read

    @abstractmethod
    def split(self, data: bytes) -> tuple[Sequence[Row], bytes]:
        """The rows in some lines without the blank ones, and the lines at their end that are no whole row yet."""

    @abstractmethod
    def payload_of(self, row: Row) -> msgspec.Raw:
        """The operation in a row, as JSON. Raises RowFault."""

    def payloads_of(self, rows: Sequence[Row]) -> list[msgspec.Raw] | None:  # noqa: ARG002 - CSV has one
        """The operations in several rows, if there is a faster way and none of the rows is at fault; else None."""
        return None

    def too_large(self, begin: bytes) -> str:  # noqa: ARG002 - CSV tells more by it
        """What to say of a row that is too large; `begin`: as much of it as could be taken."""
        return f"Larger than {self.limits.row:,} bytes; it begins in line {self.line:,} of the file"

    @abstractmethod
    def nothing(self) -> str:
        """What to say of a file without a row."""

    def unclosed(self, row: int, line: int) -> str:
        """What to say of a file that ends in a quoted value."""
        raise AssertionError(f"row {row} in line {line} has no quotes")


class CsvRows(Rows["list[str] | RowFault"]):
    """Rows of CSV (RFC 4180) in UTF-8. The first one names the columns."""

    start = Place.START

    def __init__(self, operation: type[msgspec.Struct], limits: Limits) -> None:
        super().__init__(operation, limits)
        self.names: list[str] = []
        self._many = list[operation]  # type: ignore[valid-type]  # msgspec makes one decoder for it
        self._fields = {field.encode_name: field for field in msgspec.structs.fields(operation)}
        self._whole: dict[str, str] = {}  # columns that may be misread, and their attributes
        self._watched: dict[str, str] = {}

    def split(self, data: bytes) -> tuple[Sequence[list[str] | RowFault], bytes]:
        text = data.decode(errors="surrogateescape")  # bytes that are no UTF-8 can still be put down to a row
        try:
            rows: list[list[str] | RowFault] = [row for row in csv.reader(StringIO(text), strict=True) if row]
            unfinished = ""
        except csv.Error:
            rows, unfinished = self._split_carefully(list(StringIO(text)))
        if not self.names and rows:
            self._read_header(rows.pop(0))
        return rows, unfinished.encode(errors="surrogateescape")

    def _split_carefully(self, lines: list[str]) -> tuple[list[list[str] | RowFault], str]:
        """Rows, some of which are broken, and the lines of the one that goes on after these."""
        rows = list[list[str] | RowFault]()
        reader = csv.reader(lines, strict=True)
        begin = 0
        while begin < len(lines):
            try:
                rows.append(next(reader))
            except csv.Error:
                row = "".join(lines[begin : reader.line_num])
                if end_of_row(row.encode(errors="surrogateescape"), self.start)[0] < 0:
                    return [row for row in rows if row], row
                rows.append(RowFault(None, broken(row, self.line + begin, self.line + reader.line_num - 1)))
            begin = reader.line_num
        return [row for row in rows if row], ""

    def _read_header(self, row: list[str] | RowFault) -> None:
        """Raises Invalid."""
        there_are = f"The columns of this kind: {self._columns()}."
        if isinstance(row, RowFault):
            raise Invalid(f"The header cannot be read. {row.reason} {there_are}")
        names = [name.strip() for name in row]
        if ALIEN.search("".join(names)) or "\0" in "".join(names):
            raise Invalid(f"The header is no text in UTF-8: save the file as CSV in UTF-8. {there_are}")
        if len(names) == 1 and (delimiter := re.search(r"[;\t|]", row[0])):
            raise Invalid(
                f"The header is one column, {shown(names[0])}, with {shown(delimiter[0])} in it: "
                f"values must be separated by commas. {there_are}"
            )
        lacking = [name for name, field in self._fields.items() if field.required and name not in names]
        unknown = [name for name in dict.fromkeys(names) if name not in self._fields]
        repeated = [name for name, times in Counter(names).items() if times > 1]
        faults = [
            f"{what} {listed(which)}"
            for what, which in (("lacks", lacking), ("has the unknown", unknown), ("repeats", repeated))
            if which
        ]
        if faults:
            raise Invalid(f"The header {'; it '.join(faults)}. {there_are} It is the first line of the file.")
        self.names = names
        types = {name: inspect.type_info(self._fields[name].type) for name in names}
        misread = {name: self._fields[name].name for name in names if may_misread(types[name])}
        self._whole = {name: attribute for name, attribute in misread.items() if only_whole(types[name])}
        self._watched = {name: attribute for name, attribute in misread.items() if name not in self._whole}

    def _columns(self) -> str:
        return ", ".join(name + (" (required)" if field.required else "") for name, field in self._fields.items())

    def payloads_of(self, rows: Sequence[list[str] | RowFault]) -> list[msgspec.Raw] | None:
        try:
            cells = [self._cells(row) for row in rows]
            for name in self._whole:  # the cells of all rows at once, which costs little
                if not WHOLE.fullmatch("".join([row.get(name, "") for row in cells])):
                    return None
            whats = msgspec.convert(cells, self._many, strict=False)
            if self._watched:
                for row, what in zip(cells, whats, strict=True):
                    check_each(self._watched, row, what)
            return [msgspec.Raw(encode(what)) for what in whats]
        except (RowFault, msgspec.ValidationError, UnicodeEncodeError):
            return None

    def _cells(self, row: list[str] | RowFault) -> dict[str, str]:
        """The values in a row by their columns, without the empty ones. Raises RowFault."""
        if isinstance(row, RowFault):
            raise row
        if len(row) != len(self.names):
            raise RowFault(None, f"Expected {counted(len(self.names))} as in the header, got {len(row)}")
        cells = dict(zip(self.names, row))  # noqa: B905 - they are as many, and `strict` costs a tenth of the time
        return {name: cell for name, cell in cells.items() if cell} if "" in row else cells

    def payload_of(self, row: list[str] | RowFault) -> msgspec.Raw:
        cells = self._cells(row)
        try:
            what = msgspec.convert(cells, self.operation, strict=False)
            payload = msgspec.Raw(encode(what))
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            raise self._fault(error, cells) from error
        check_each(self._whole | self._watched, cells, what)
        return payload

    def _fault(self, error: Exception, cells: dict[str, str]) -> RowFault:
        """What is wrong with the values in a row."""
        for name, cell in cells.items():
            if alien := ALIEN.search(cell):
                return RowFault(name, f"Not UTF-8 (byte 0x{ord(alien[0]) - 0xDC00:X}): save the file as CSV in UTF-8")
        path, message = in_words(str(error), self.operation)
        message = message.replace(" | null`", "`")  # which is an empty cell
        column = ".".join(path) or None
        got = shown(cells[path[0]]) if path and path[0] in cells else None
        return fault_of(column, message, got)

    def too_large(self, begin: bytes) -> str:
        if not self.names:
            raise Invalid(
                f"The header is larger than {self.limits.row:,} bytes: the file must be CSV in UTF-8 whose lines end "
                f"in LF or CRLF. The columns of this kind: {self._columns()}."
            )
        in_quotes = end_of_row(begin, self.start)[1] is Place.QUOTED
        return super().too_large(begin) + ('. Is a quote (") in it never closed?' if in_quotes else "")

    def nothing(self) -> str:
        if self.names:
            return "There is only a header: a row for each operation must follow it."
        return f"The file is empty: it needs a header, and a row for each operation. Its columns: {self._columns()}."

    def unclosed(self, row: int, line: int) -> str:
        where = f"row {row:,} (line {line:,} of the file)" if self.names else f"the header (line {line} of the file)"
        return (
            f'A quote (") that opens in {where} is never closed. Close it where its value ends; '
            'a quote that belongs to a value is written twice ("").'
        )


class JsonRows(Rows[bytes]):
    """Rows that are JSON objects."""

    start = Place.LINE

    def __init__(self, operation: type[msgspec.Struct], limits: Limits) -> None:
        super().__init__(operation, limits)
        self._decode = msgspec.json.Decoder(operation).decode
        self._required = sum(field.required for field in msgspec.structs.fields(operation))

    def split(self, data: bytes) -> tuple[Sequence[bytes], bytes]:
        lines = [line for line in data.split(b"\n") if line.strip()]
        if not self.number and lines and (lines[0].lstrip().startswith(b"[") or lines[0].strip() == b"{"):
            raise Invalid(
                "This is one JSON document, not NDJSON: put each operation on a line of its own, as an object, without "
                "a list around them."
            )
        return lines, b""

    def payload_of(self, row: bytes) -> msgspec.Raw:
        if len(row) > self.limits.row:
            raise RowFault(None, f"Larger than {self.limits.row:,} bytes")
        try:
            try:
                what = self._decode(row)
            except msgspec.ValidationError:
                what = decoded(row, self.operation)
            payload = msgspec.Raw(encode(what))
            if row.count(b":") > self._required:  # else none of its names can be there twice
                BODY.decode(row.decode())
        except msgspec.ValidationError as error:
            path, message = in_words(str(error), self.operation)
            raise fault_of(".".join(path) or None, message, found_in(row, path)) from error
        except BadRequest as error:
            raise fault_of(error.problem.field, error.problem.message, None) from error
        except UnicodeError as error:
            raise RowFault(None, "Not UTF-8") from error
        except RecursionError as error:
            raise RowFault(None, "Nested too deeply") from error
        except (msgspec.DecodeError, ValueError) as error:
            raise RowFault(None, f"Not a JSON object: {error}") from error
        return payload

    def nothing(self) -> str:
        return "The file is empty: it needs a JSON object on a line for each operation."


MANY = 500
"""Operations in a piece of work at most."""


class Pieces:
    """Cuts operations, as they come, into pieces: at most `many` of them and `size` bytes of payload each.

    An operation that alone is larger than `size` is a piece by itself.
    """

    def __init__(self, many: int = MANY, size: int = 512 * 1024) -> None:
        self.many = many
        self.size = size
        self._piece: list[Operation] = []
        self._filled = 0

    def add(self, operations: Iterable[Operation]) -> list[list[Operation]]:
        """The pieces that are full with these."""
        full = []
        for operation in operations:
            size = len(operation.payload)
            if self._piece and (len(self._piece) == self.many or self._filled + size > self.size):
                full += self.rest()
            self._piece.append(operation)
            self._filled += size
        return full

    def rest(self) -> list[list[Operation]]:
        """The last piece, if there is one. What is added afterwards begins a new one."""
        piece, self._piece, self._filled = self._piece, [], 0
        return [piece] if piece else []


async def operations_in(
    body: AsyncIterator[bytes], media_type: MediaType, operation: type[msgspec.Struct], limits: Limits = LIMITS
) -> AsyncIterator[Read]:
    """The operations in a file and the rows that are none, some at a time and at least one in all. Raises Invalid.

    Rows count from 1 on; the header of CSV and blank lines don't count. A cell of CSV is its text, converted to the
    type of its field of `operation`: a whole number is digits, perhaps with a minus sign before them, and `null` is a
    word. An empty cell leaves its field out. The payload is JSON of the checked `operation`.
    Invalid says what is wrong with the file as a whole; what came before it is not to be used then.
    """
    rows: Rows[bytes] | CsvRows = (CsvRows if media_type == "text/csv" else JsonRows)(operation, limits)
    async for block in blocks(body, min(limits.wait, limits.row), limits.row):
        read = rows.read(block)
        if any(read):
            yield read
    read = rows.end()
    if any(read):
        yield read


def operations_of(raws: Sequence[msgspec.Raw], operation: type[msgspec.Struct]) -> Read:
    """The operations in a list of JSON values, and which of them (from 1 on) are none."""
    operations, refused = list[Operation](), list[RefusedRow]()
    JsonRows(operation, LIMITS).take([bytes(raw) for raw in raws], operations, refused)
    return operations, refused


def rows_as_sent(file: BinaryIO, media_type: MediaType, limits: Limits = LIMITS) -> Iterator[bytes]:
    """The rows of a file byte for byte, counted as `operations_in` does; before those of CSV comes the header."""
    start = CsvRows.start if media_type == "text/csv" else JsonRows.start
    blank = b"\r\n" if media_type == "text/csv" else None
    place, row = start, bytearray()
    if file.read(len(BOM)) != BOM:
        file.seek(0)
    for line in file:
        end, place = end_of_row(line if line.endswith(b"\n") else line + b"\n", place)
        row += line
        if end >= 0:
            if row.strip(blank) or len(row) > limits.row:
                yield bytes(row)
            place, row = start, bytearray()
    if row:
        yield bytes(row)


async def blocks(body: AsyncIterator[bytes], least: int, most: int) -> AsyncIterator[bytes]:
    """The same bytes in blocks of `least` to `most`, but for the last one, however a network cut them."""
    kept = bytearray()
    async for part in body:
        kept += part
        while len(kept) >= least:
            yield bytes(kept[:most])
            del kept[:most]
    if kept:
        yield bytes(kept)


def beginning(block: bytes) -> bytes:
    """The first block of a file without its byte order mark. Raises Invalid if it is no text in UTF-8."""
    for mark, what in NOT_TEXT.items():
        if block.startswith(mark):
            raise Invalid(f"This is {what}: save it as text in UTF-8 (CSV or NDJSON), and send that.")
    return block.removeprefix(BOM)


def broken(row: str, first: int, last: int) -> str:
    """What to say of a row of CSV that is broken, in these lines of the file."""
    where = f"line {first:,} of the file" if first == last else f"lines {first:,} to {last:,} of the file"
    if '"' in row:
        return (
            f'A quote (") in {where} neither opens nor closes a value: put the value in quotes, and write each quote '
            'that belongs to it twice ("").'
        )
    return f"A carriage return stands alone in {where}: lines end in LF or CRLF."


WHOLE_TYPES = inspect.IntType | inspect.NoneType
MISREAD = WHOLE_TYPES | inspect.FloatType | inspect.DateTimeType | inspect.TimeDeltaType


def types_in(kind: inspect.Type) -> Iterator[inspect.Type]:
    """A type, or those that a union is of."""
    match kind:
        case inspect.Metadata(type=inner):
            yield from types_in(inner)
        case inspect.UnionType(types=kinds):
            for each in kinds:
                yield from types_in(each)
        case _:
            yield kind


def may_misread(kind: inspect.Type) -> bool:
    """Whether text that msgspec converts to this may become what nobody wrote, or JSON cannot tell; see `check`."""
    kinds = list(types_in(kind))
    if any(isinstance(each, inspect.StrType | inspect.AnyType) for each in kinds):
        return False  # text stays text
    return any(isinstance(each, MISREAD) for each in kinds)


def only_whole(kind: inspect.Type) -> bool:
    """Whether this is whole numbers, or none."""
    return all(isinstance(each, WHOLE_TYPES) for each in types_in(kind))


def check_each(columns: Mapping[str, str], cells: Mapping[str, str], what: msgspec.Struct) -> None:
    """`check` the values of a row that are in these columns, which are those attributes of it."""
    for column, attribute in columns.items():
        if column in cells:
            check(column, cells[column], getattr(what, attribute))


def check(column: str, cell: str, value: object) -> None:
    """Refuse a cell that msgspec has taken for something else than its text says. Raises RowFault.

    That is `1e2` for a whole number, `null` for none, `nan` and infinity, and seconds since 1970 for a time.
    """
    expected = None
    match value:
        case None:
            expected = "a value, or an empty cell"
        case float() if not isfinite(value):
            expected = "a finite number"
        case int() if not isinstance(value, bool) and not WHOLE.fullmatch(cell):
            expected = "a whole number"
        case datetime() if ":" not in cell:
            expected = "a time such as 2030-01-31T20:00:00Z"
        case timedelta() if "P" not in cell.upper():
            expected = "a duration such as PT15M"
    if expected:
        raise fault_of(column, f"Expected {expected}", shown(cell))


def listed(names: Sequence[str]) -> str:
    """Names as somebody wrote them, not too many."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(shown, names[:SHOWN_NAMES])) + more


def counted(cells: int) -> str:
    return f"{cells} cells" if cells > 1 else "1 cell"
