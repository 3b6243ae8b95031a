"""What the identity service does when it hears of its own: whatever was issued before is not believed any more."""

from common.credentials import fact_id_of
from common.events import KeyRevoked, LoginsEnded, Revoked, RoleChanged, SessionEnded
from common.listener import Listener
from common.publisher import Publisher


class RevokeWhatWasIssued(Listener[SessionEnded | KeyRevoked | RoleChanged | LoginsEnded]):
    """Tells every process that verifies by itself."""

    durable = "identity-revoke"

    def __init__(self, revoked: Publisher[Revoked]) -> None:
        self._revoked = revoked

    async def on(self, event: SessionEnded | KeyRevoked | RoleChanged | LoginsEnded) -> None:
        match event:
            case SessionEnded(session_id=session_id):
                fact = Revoked(what="session", whose=str(session_id), at=event.at)
            case KeyRevoked(key_id=key_id):
                fact = Revoked(what="key", whose=str(key_id), at=event.at)
            case RoleChanged(user_id=user_id) | LoginsEnded(user_id=user_id):
                fact = Revoked(what="user", whose=user_id, at=event.at, since=event.version)
        await self._revoked.publish(fact_id_of(fact.what, f"{fact.whose} {event.version}"), fact)
