"""HTTP -> what services tell and ask each other, for whoever writes one: as AsyncAPI, and as a page."""

from pathlib import Path
from typing import Any

import msgspec
from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency

from common.assets import Asset
from common.asyncapi import Document
from common.headers import POLICY
from services.history.speech import page_of

STYLES = Path(__file__).parent / "page" / "docs.css"
PAGE_POLICY = f"{POLICY}; style-src 'self'; img-src data:"
"""It runs nothing; its icon stands in it."""


class Speech(msgspec.Struct, frozen=True):
    """The document, its page, and how that looks."""

    document: Asset
    page: Asset
    styles: Asset

    @classmethod
    def of(cls, document: Document) -> "Speech":
        return cls(
            Asset.of(msgspec.json.encode(document), "application/json"),
            Asset.of(page_of(document).encode(), "text/html"),
            Asset.load(STYLES, "text/css"),
        )


class SpeechController(Controller):
    """Shapes, and nothing of what was told: for whoever asks, as `/api/docs`."""

    path = "/api/events"
    include_in_schema = False

    @get("/asyncapi.json", sync_to_thread=False)
    def document(self, request: Request[Any, Any, Any], speech: NamedDependency[Speech]) -> Response[bytes]:
        """For programs."""
        return speech.document.answer(request)

    @get("/docs", sync_to_thread=False, response_headers={"Content-Security-Policy": PAGE_POLICY})
    def page(self, request: Request[Any, Any, Any], speech: NamedDependency[Speech]) -> Response[bytes]:
        """For people."""
        return speech.page.answer(request)

    @get("/docs/docs.css", sync_to_thread=False)
    def styles(self, request: Request[Any, Any, Any], speech: NamedDependency[Speech]) -> Response[bytes]:
        """How the page looks."""
        return speech.styles.answer(request)
