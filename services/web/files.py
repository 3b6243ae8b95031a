"""What the page is made of: its files, under one name that changes when any of them does."""

import gzip
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Self

import msgspec

from common.headers import POLICY

FOLDER = Path(__file__).parent / "page"

MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css"}
"""Of what browsers fetch. Other files beside them, as licences, are for people."""

BARE = {"preact": "vendor/preact.js", "preact/hooks": "vendor/hooks.js", "htm": "vendor/htm.js"}
"""Modules that are imported by name: where each is."""


class File(msgspec.Struct, frozen=True):
    """A file as it goes over the wire, as it is and compressed."""

    source: bytes
    compressed: bytes
    media_type: str

    @classmethod
    def of(cls, source: bytes, media_type: str) -> Self:
        return cls(source, gzip.compress(source, mtime=0), media_type)


class Files(msgspec.Struct, frozen=True):
    """The page: `index` is the document, which names all others by `version`; `policy`, what it may do."""

    version: str
    index: File
    policy: str
    others: dict[str, File]

    @classmethod
    def load(cls, folder: Path = FOLDER) -> Self:
        """Read once, when the service starts."""
        paths = sorted(path for path in folder.rglob("*") if path.suffix in MEDIA_TYPES)
        sources = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        digest = sha256()
        for name, source in sources.items():
            digest.update(f"{name} {len(source)} ".encode() + source)
        version = digest.hexdigest()[:16]
        imports = msgspec.json.encode({"imports": {name: f"/assets/{version}/{at}" for name, at in BARE.items()}})
        index = (folder / "index.html").read_text().replace("{version}", version).replace("{imports}", imports.decode())
        hashed = b64encode(sha256(imports).digest()).decode()
        policy = (
            f"{POLICY}; script-src 'self' 'sha256-{hashed}'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
        )
        others = {name: File.of(source, MEDIA_TYPES[Path(name).suffix]) for name, source in sources.items()}
        return cls(version, File.of(index.encode(), "text/html"), policy, others)
