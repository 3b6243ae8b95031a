"""What a person and a scanner read in a PDF."""

import io

import zxingcpp
from PIL import Image, ImageOps
from pypdf import PdfReader


def text_in(document: bytes) -> str:
    """The text of a PDF, without empty lines."""
    lines = [line for page in PdfReader(io.BytesIO(document)).pages for line in page.extract_text().split("\n")]
    return "\n".join(filter(None, lines))


def codes_in(document: bytes) -> list[list[str]]:
    """What the QR codes of a PDF say, page by page."""
    pages = PdfReader(io.BytesIO(document)).pages
    return [[read(picture.image) for picture in page.images if picture.image] for page in pages]


def read(picture: Image.Image) -> str:
    """What a QR code says, which has white around it on paper."""
    on_paper = ImageOps.expand(picture.convert("L"), border=64, fill=255)
    [found] = zxingcpp.read_barcodes(on_paper, formats=zxingcpp.BarcodeFormats(zxingcpp.BarcodeFormat.QRCode))
    return str(found.text)
