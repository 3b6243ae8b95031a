"""This service's variables."""

from typing import Annotated

from msgspec import Meta

from common.settings import Settings


class BatchSettings(Settings, frozen=True, kw_only=True):
    """`batch_limit`: operations in one statement at most; `batch_interval_ms`: how long they are collected for it."""

    batch_limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    batch_interval_ms: Annotated[int, Meta(ge=0, le=60_000)] = 20
