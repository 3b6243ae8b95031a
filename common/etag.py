"""Which version of a thing somebody has seen: ETag says it, If-Match asks for it."""

from typing import Annotated

from litestar.datastructures import ResponseHeader
from litestar.params import HeaderParameter

ETAG_HEADER = ResponseHeader(name="ETag", description="The version of what is shown", documentation_only=True)
IfMatch = Annotated[
    str,
    HeaderParameter(
        name="If-Match",
        pattern=r'^([*]|(W/)?"[0-9]{1,18}")(?!\n)$',
        description='The ETag that GET gave you, such as "3", or * for any version',
    ),
]
"""A change without it is refused with 428; see `problems.py`."""


def etag_of(version: int) -> str:
    """The ETag of a version."""
    return f'"{version}"'


def version_in(if_match: str) -> int | None:
    """The version that an `IfMatch` asks for; None for any."""
    return None if if_match == "*" else int(if_match.removeprefix("W/").strip('"'))
