"""Variables of the notification service."""

from typing import Annotated

from msgspec import Meta

from common.settings import Settings

Secret = Annotated[
    str,
    Meta(pattern=r"^([!-~]{32,})?(?!\n)$", description="32 visible ASCII characters at least, that nobody can guess"),
]


class NotificationSettings(Settings, frozen=True, kw_only=True):
    """`connections_per_user`: how many of one user's may stay open in a process.

    `webhook_secret`: from which those of all webhooks are derived. `webhook_private_addresses`: whether webhooks may
    lead to them, for development. `webhook_retry_seconds`: from the first attempt to the second.
    """

    connections_per_user: Annotated[int, Meta(ge=1, le=10_000)] = 20
    webhook_secret: Secret = ""
    webhook_private_addresses: bool = False
    webhook_retry_seconds: Annotated[float, Meta(gt=0, le=3600)] = 5.0
