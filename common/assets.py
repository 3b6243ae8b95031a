"""Files that browsers fetch: whoever has one already is told so."""

from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import msgspec
from litestar import Request, Response


class Asset(msgspec.Struct, frozen=True):
    """A file, read or made once. Browsers keep it, and ask each time whether it still is the same."""

    source: bytes
    media_type: str
    etag: str

    @classmethod
    def load(cls, path: Path, media_type: str) -> Self:
        return cls.of(path.read_bytes(), media_type)

    @classmethod
    def of(cls, source: bytes, media_type: str) -> Self:
        """What was made, and is in no file."""
        return cls(source, media_type, f'"{sha256(source).hexdigest()[:32]}"')

    def answer(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """The file, or that it has not changed (RFC 9110, 13.1.2)."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(b"", status_code=304, headers=headers)
        return Response(self.source, media_type=self.media_type, headers=headers)
