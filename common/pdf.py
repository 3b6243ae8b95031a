"""How a ticket looks on paper: a title, lines of text, and QR codes at their right."""

import io
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import msgspec
import segno
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]  # it has no types
from fpdf import FPDF
from fpdf.fonts import TTFFont

PAGES = 20
"""Pages at most."""
MARGIN, COLUMN, CODE_SIZE, GAP = 20.0, 112.0, 45.0, 10.0
"""Millimetres: around the page; the width of text beside codes; a code, and the space below it."""
TITLE, TITLE_LEADING, TEXT, LEADING = 24.0, 10.5, 12.0, 6.8
"""Points of type, and millimetres from line to line."""
FONTS: Mapping[Literal["", "B"], str] = {"": "OpenSans-Regular.ttf", "B": "OpenSans-SemiBold.ttf"}


class Line(msgspec.Struct, frozen=True):
    """A line of text (which may take several on paper), and what the codes say that stand beside and below it."""

    text: str
    codes: Sequence[str] = ()


def code_of(text: str) -> segno.QRCode:
    """A QR code that still reads when 15 % of it are hidden. Raises ValueError for no text, or too much of it."""
    if not text:
        raise ValueError("a code needs a text")
    try:
        return segno.make_qr(text, error="m")
    except segno.DataOverflowError as error:
        raise ValueError("the text is too long for a code") from error


def pdf(lines: Sequence[Line]) -> bytes:
    """A ticket on A4; the first line is its title. Raises ValueError when it takes more than PAGES pages."""
    with a4() as sheet:
        width = COLUMN if any(line.codes for line in lines) else sheet.epw
        taken = (1, 0.0)  # the page, and up to where codes stand on it
        for number, line in enumerate(lines):
            if number == 0:
                write_title(sheet, drawable(line.text).strip())
            for nth, code in enumerate(line.codes):
                y = place_for_code(sheet, below=taken[1] if taken[0] == sheet.page else 0)
                write_code(sheet, code, y)
                taken = sheet.page, y + CODE_SIZE + GAP
                if nth == 0:
                    sheet.set_y(y)  # its line beside it
            if number > 0 and not (line.codes and not line.text.strip()):
                write(sheet, width, LEADING, drawable(line.text).rstrip())
            if sheet.page > PAGES:
                raise ValueError(f"it makes more than {PAGES} pages")
        return bytes(sheet.output())


@contextmanager
def a4() -> Iterator[FPDF]:
    """An empty sheet, with fonts whose files are open as long as it is."""
    sheet = FPDF(format="A4")
    sheet.set_margin(MARGIN)
    sheet.c_margin = 0
    sheet.set_auto_page_break(True, MARGIN)
    sheet.set_creator("Boxoffice")
    try:
        for style, name in FONTS.items():
            sheet.add_font("Open Sans", style, font(name))
        sheet.add_page()
        yield sheet
    finally:
        for each in sheet.fonts.values():
            if isinstance(each, TTFFont):
                each.ttfont.close()


def write_title(sheet: FPDF, title: str) -> None:
    """The title, and a line below it."""
    sheet.set_title(title)
    sheet.set_font("Open Sans", "B", TITLE)
    write(sheet, sheet.epw, TITLE_LEADING, title)
    sheet.set_draw_color(160)
    sheet.set_line_width(0.3)
    sheet.line(sheet.l_margin, sheet.y + 2, sheet.w - sheet.r_margin, sheet.y + 2)
    sheet.ln(GAP)
    sheet.set_font("Open Sans", "", TEXT)


def write(sheet: FPDF, width: float, leading: float, text: str) -> None:
    """A line of text, on as many as it takes."""
    if text:
        sheet.multi_cell(width, leading, text, align="L", new_x="LMARGIN", new_y="NEXT")
    else:
        sheet.ln(leading)


def place_for_code(sheet: FPDF, *, below: float) -> float:
    """How far down a code stands: where the text has come to, or `below` other codes; on a new page if it must."""
    y = max(sheet.y, below)
    if y + CODE_SIZE > sheet.page_break_trigger:
        sheet.add_page()
        return sheet.y
    return y


def write_code(sheet: FPDF, text: str, y: float) -> None:
    """A code at the right."""
    picture = io.BytesIO()
    code_of(text).save(picture, kind="png", scale=8, border=0)  # white around it is the page
    sheet.image(picture, x=sheet.w - sheet.r_margin - CODE_SIZE, y=y, w=CODE_SIZE, h=CODE_SIZE)


def font(name: str) -> Path:
    """Where a font of the package `ttf-opensans` is."""
    return Path(str(files("ttf_opensans"))) / "ttf" / name


@cache
def drawn() -> frozenset[int]:
    """The code points that the fonts have: Latin with Vietnamese, Greek, Cyrillic."""
    both = []
    for name in FONTS.values():
        with TTFont(font(name)) as open_font:
            both.append(frozenset(open_font.getBestCmap()))
    return frozenset.intersection(*both)


def drawable(text: str) -> str:
    """The text in characters that the fonts have: plainer ones that mean the same, or a mark that one is missing.

    Not covered are other scripts, and emoji.
    """
    return "".join(map(as_drawn, unicodedata.normalize("NFC", text.expandtabs(4))))


def as_drawn(character: str) -> str:
    plain = unicodedata.normalize("NFKC", character)
    for candidate in (character, plain):
        if all(ord(each) in drawn() for each in candidate):
            return candidate
    invisible = unicodedata.category(character) in ("Cc", "Cf", "Mn", "Me")
    return "" if invisible else "\N{REPLACEMENT CHARACTER}"
