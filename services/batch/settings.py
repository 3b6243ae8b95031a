"""This service's variables."""

from typing import Annotated

from msgspec import Meta

from common.settings import Settings


class BatchSettings(Settings, frozen=True, kw_only=True):
    """`batch_limit`: operations in one statement at most; `batch_interval_ms`: how long they are collected for it.

    `operators`: the users who may pause and resume kinds, with commas between them.
    """

    batch_limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    batch_interval_ms: Annotated[int, Meta(ge=0, le=60_000)] = 20
    operators: str = "operator"

    def may_pause(self, user_id: str) -> bool:
        """Whether this user is an operator."""
        return user_id in {name.strip() for name in self.operators.split(",")} - {""}
