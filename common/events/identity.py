"""What the identity service tells: who is known here, who is logged in, which keys programs have."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from common.events.base import Content, Event, Person

Role = Literal["buyer", "seller", "operator"]
"""What somebody may do; each may also do what those before it may."""

SessionEnd = Literal["logout", "reuse", "provider"]
"""Why a session ended: its user said so, or a refresh token was used twice. That a provider does not vouch for somebody
any more was told so until there was `LoginsEnded`."""


class UserRegistered(Event, frozen=True, tag="user_registered"):
    """Somebody was here for the first time: `subject` at `issuer`, who is `user_id` from now on.

    Names and addresses of people are not in the log, which forgets nothing.
    """

    user_id: Person
    issuer: str
    subject: Person
    role: Role
    at: datetime


class RoleChanged(Event, frozen=True, tag="role_changed"):
    """A user may do something else from now on. `by`: the operator who said so, or none where the settings did."""

    user_id: Person
    role: Role
    by: Person | None
    at: datetime


class LoginsEnded(Event, frozen=True, tag="logins_ended"):
    """What let a user in until now, sessions and keys, does not any more.

    `by`: the operator who said so; None where who vouched for them does not any more.
    """

    user_id: Person
    by: Person | None
    at: datetime


class SessionOpened(Event, frozen=True, tag="session_opened"):
    """A user logged in through `provider`."""

    session_id: UUID
    user_id: Person
    provider: str
    at: datetime
    expires_at: datetime


class SessionRefreshed(Event, frozen=True, tag="session_refreshed"):
    """The session's refresh token was exchanged for that of the next `generation`."""

    session_id: UUID
    user_id: Person
    generation: int
    at: datetime


class SessionEnded(Event, frozen=True, tag="session_ended"):
    """Nothing that was issued in this session is believed any more."""

    session_id: UUID
    user_id: Person
    reason: SessionEnd
    at: datetime


class KeyAdmitted(Event, frozen=True, tag="key_admitted"):
    """A user, who has fewer than they may have, may make this key. `gone`: keys admitted before that are none now."""

    user_id: Person
    key_id: UUID
    gone: list[UUID]
    at: datetime
    expires_at: datetime | None


class KeyCreated(Event, frozen=True, tag="key_created"):
    """A program may act for a user, within `scopes`. `digest`: SHA-256 of the secret, in base 16."""

    key_id: UUID
    user_id: Person
    name: Content
    scopes: list[str]
    digest: Content
    at: datetime
    expires_at: datetime | None


class KeyUsed(Event, frozen=True, tag="key_used"):
    """A program used its key; told once in a while only."""

    key_id: UUID
    user_id: Person
    at: datetime


class KeyRevoked(Event, frozen=True, tag="key_revoked"):
    """A key is not believed any more."""

    key_id: UUID
    user_id: Person
    at: datetime


class Revoked(Event, frozen=True, tag="revoked"):
    """What was issued before must not be believed any more: of a session, of a key, or all that a user had.

    In a stream that keeps it for as long as what was issued would be believed. `since`: of a user, the version from
    which on they may do something else; what was issued to them as an older one is no longer true.
    """

    what: Literal["session", "key", "user"]
    whose: Person
    at: datetime
    since: int = 0


class Spent(Event, frozen=True, tag="spent"):
    """Something that may be used once was used. In a stream that keeps it for longer than that would be believed."""

    what: Literal["login", "ticket"]
    at: datetime


UserEvent = UserRegistered | RoleChanged | LoginsEnded
SessionEvent = SessionOpened | SessionRefreshed | SessionEnded
KeyEvent = KeyCreated | KeyUsed | KeyRevoked
IdentityEvent = UserEvent | SessionEvent | KeyAdmitted | KeyEvent
