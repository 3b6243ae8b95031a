"""HTTP -> what services tell and ask each other, for whoever writes one: as AsyncAPI, and as a page."""

from collections.abc import Callable
from functools import cached_property
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


class Speech:
    """The document, its page, and how that looks; made when they are first asked for, which takes some 50 ms."""

    def __init__(self, document: Callable[[], Document]) -> None:
        self._document = document

    @cached_property
    def document(self) -> Asset:
        return Asset.of(msgspec.json.encode(self._document()), "application/json")

    @cached_property
    def page(self) -> Asset:
        return Asset.of(page_of(self._document()).encode(), "text/html")

    @cached_property
    def styles(self) -> Asset:
        return Asset.load(STYLES, "text/css")


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
