"""Variables of the notification service."""

from typing import Annotated

from msgspec import Meta

from common.settings import Settings


class NotificationSettings(Settings, frozen=True, kw_only=True):
    """`connections_per_user`: how many of one user's may stay open in a process."""

    connections_per_user: Annotated[int, Meta(ge=1, le=10_000)] = 20
