"""What is posted to webhooks in a rehearsal: nothing."""

from collections.abc import Sequence

from common.rehearsal import NotForeseen, Rehearsal
from services.notification.webhook_sending import Header
from services.notification.webhooks import Answer


class NotedPosts:
    """Posts nothing, and so knows no answer."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal

    async def post(self, url: str, headers: Sequence[Header], body: str) -> Answer:  # noqa: ARG002 (the notification has it)
        """Raises NotForeseen."""
        address = url.partition("?")[0]  # what stands behind it may be a secret
        self._rehearsal.note("post", f"post delivery {dict(headers)['webhook-id']} to {address}")
        raise NotForeseen("what the webhook answers")
