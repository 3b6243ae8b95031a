"""Requests that may come again: the key that says that two are one, and the id that is made from it."""

from typing import Annotated
from uuid import UUID, uuid5

from litestar.params import HeaderParameter

NAMESPACE = UUID("6f2d3c55-5d0e-5f6b-9a53-0d6a5b1f7c11")

IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        min_length=1,
        max_length=128,
        pattern=r"^[!-~]+(?!\n)$",
        description="1 to 128 visible ASCII characters. The same key and request again tell of what the first one made",
    ),
]


def request_id_of(user_id: str, key: str) -> UUID:
    """The id of what a user asks for under an Idempotency-Key."""
    return uuid5(NAMESPACE, f"{user_id} {key}")
