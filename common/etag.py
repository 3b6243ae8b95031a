"""Which version of a thing somebody has seen: ETag says it, If-Match asks for it."""

import re
from typing import Annotated

from litestar.datastructures import ResponseHeader
from litestar.params import HeaderParameter

from common.errors import Invalid, PreconditionRequired

ETAG_HEADER = ResponseHeader(name="ETag", description="The version of what is shown", documentation_only=True)
ETAG = re.compile(r'(?:W/)?"([0-9]{1,18})"')
IfMatch = Annotated[
    str | None,
    HeaderParameter(
        name="If-Match",
        max_length=100,
        description='The ETag that GET gave you, such as "3", or * for any; a change without it is refused',
    ),
]


def etag_of(version: int) -> str:
    """The ETag of a version."""
    return f'"{version}"'


def version_in(if_match: str | None) -> int | None:
    """The version that an If-Match header asks for; None for any. Raises PreconditionRequired, Invalid."""
    if if_match is None:
        raise PreconditionRequired("If-Match: Required; say which version you have seen, by the ETag of your GET.")
    if if_match == "*":
        return None
    if not (etag := ETAG.fullmatch(if_match)):
        raise Invalid(f'If-Match: Expected an ETag that GET gave you, such as "3", got {if_match}', field="If-Match")
    return int(etag[1])
