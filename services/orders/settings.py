"""This service's variables."""

from typing import Annotated

from msgspec import Meta

from common.settings import Settings


class OrdersSettings(Settings, frozen=True, kw_only=True):
    """`hold_seconds`: how long a buyer has to pay."""

    hold_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 900
