"""What users, their sessions and their keys may do and become."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from secrets import compare_digest
from typing import assert_never
from uuid import UUID, uuid5

import msgspec

from common.aggregate import Aggregate, Decider
from common.errors import Conflict, NotFound, Unauthenticated
from common.events import (
    KeyAdmitted,
    KeyCreated,
    KeyEvent,
    KeyRevoked,
    KeyUsed,
    LoginsEnded,
    Role,
    RoleChanged,
    SessionEnd,
    SessionEnded,
    SessionEvent,
    SessionOpened,
    SessionRefreshed,
    UserEvent,
    UserRegistered,
)

NAMESPACE = UUID("c1a6a1f4-9d4b-5b0e-8d55-6b7b2d0d9a27")

DEV = "dev"
"""The issuer of those who say themselves who they are."""

NO_LONGER = "Nobody is let in here by their word any more, as BOXOFFICE_AUTH is not dev; log in with a provider."
"""To those whom development let in, where it is over."""

GRACE = timedelta(seconds=10)
"""For so long a refresh token that was just exchanged is answered again: its answer may have been lost on the way, or
two tabs of a page may have sent it. Later it is a stolen one."""

MOST_KEYS = 50
"""Keys that a user may have at a time; those that have expired do not count."""

MADE_WITHIN = timedelta(minutes=1)
"""A key that was admitted and is not there after so long was never made: whoever was about to make it was cut off."""

USE_TOLD_AFTER = timedelta(minutes=10)
"""That a key is used is told so often at most."""


def user_id_of(issuer: str, subject: str) -> str:
    """Who somebody is here: the same for ever. A developer is called as he says."""
    return subject if issuer == DEV else str(uuid5(NAMESPACE, f"{issuer}\n{subject}"))


def place_id_of(user_id: str) -> UUID:
    """The id under which the log has a user."""
    return uuid5(NAMESPACE, user_id)


# --- users


class Account(msgspec.Struct, frozen=True):
    """A user as the events leave them. `issuer`: who vouches for them; `by`: who gave them their role, None for the
    settings; `ended_at`: until when all that let them in has ended.
    """

    user_id: str = ""
    role: Role = "buyer"
    by: str | None = None
    issuer: str = ""
    ended_at: datetime | None = None

    def let_in_since(self, at: datetime | None) -> None:
        """Raises Unauthenticated if a login or key of that time has ended with all others of its user."""
        if self.ended_at is not None and at is not None and at <= self.ended_at:
            raise Unauthenticated("All logins and keys of this user were ended; log in again.")


class LogIn(msgspec.Struct, frozen=True):
    """Somebody is here whom `issuer` vouches for.

    `role`: what the settings make of them, now; None leaves them what an operator made of them, or `new_role`.
    """

    issuer: str
    subject: str
    role: Role | None
    new_role: Role
    at: datetime


class ChangeRole(msgspec.Struct, frozen=True):
    user_id: str
    role: Role
    by: str
    at: datetime


class KeepOperator(msgspec.Struct, frozen=True):
    """The settings do not name this user: whoever is an operator by them alone is `new_role` from now on."""

    user_id: str
    new_role: Role
    at: datetime


class EndLogins(msgspec.Struct, frozen=True):
    """Let nothing in that let this user in until now. `by`: as in LoginsEnded."""

    user_id: str
    by: str | None
    at: datetime


UserCommand = LogIn | ChangeRole | KeepOperator | EndLogins


def decide_user(command: UserCommand, account: Account) -> list[UserEvent]:
    match command:
        case LogIn(issuer, subject, role, new_role, at):
            user_id = user_id_of(issuer, subject)
            if not account.user_id:
                return [UserRegistered(user_id, issuer, subject, role or new_role, at)]
            if role is None and account.role == "operator" and account.by is None:
                role = new_role  # the settings made them one, and do not any more
            return [RoleChanged(user_id, role, None, at)] if role and role != account.role else []
        case ChangeRole(user_id, role, by, at):
            if not account.user_id:
                raise NotFound(f"There is no user {user_id}.")
            if user_id == by:
                raise Conflict("Your own role is changed by another operator.")
            return [RoleChanged(user_id, role, by, at)] if role != account.role else []
        case KeepOperator(user_id, new_role, at):
            lost = account.role == "operator" and account.by is None and new_role != "operator"
            return [RoleChanged(user_id, new_role, None, at)] if lost else []
        case EndLogins(user_id, by, at):
            if not account.user_id:
                raise NotFound(f"There is no user {user_id}.")
            return [LoginsEnded(user_id, by, at)]
        case _:
            assert_never(command)


def evolve_user(account: Account, event: UserEvent) -> Account:
    match event:
        case UserRegistered(user_id, issuer, role=role):
            return Account(user_id, role, issuer=issuer)
        case RoleChanged(_, role, by):
            return msgspec.structs.replace(account, role=role, by=by)
        case LoginsEnded(at=at):
            return msgspec.structs.replace(account, ended_at=at)
        case _:
            assert_never(event)


def asks_of_user(event: UserEvent) -> UserCommand | None:
    """The command that leads to an event."""
    match event:
        case UserRegistered(_, issuer, subject, role, at):
            return LogIn(issuer, subject, None, role, at)
        case RoleChanged(user_id, role, by, at):
            return ChangeRole(user_id, role, by, at) if by else None  # they logged in, or the settings changed
        case LoginsEnded(user_id, by, at):
            return EndLogins(user_id, by, at)
        case _:
            assert_never(event)


# --- sessions


class Session(msgspec.Struct, frozen=True):
    """A login as its events leave it, opened `at`. `generation`: of the refresh token that counts, which was issued at
    `refreshed_at`.
    """

    session_id: UUID | None = None
    user_id: str = ""
    provider: str = ""
    generation: int = 0
    refreshed_at: datetime | None = None
    expires_at: datetime | None = None
    ended: SessionEnd | None = None
    at: datetime | None = None


class OpenSession(msgspec.Struct, frozen=True):
    session_id: UUID
    user_id: str
    provider: str
    at: datetime
    expires_at: datetime


class RefreshSession(msgspec.Struct, frozen=True):
    """Exchange the refresh token of a generation. One that was exchanged before ends the session: it was stolen."""

    generation: int
    at: datetime


class EndSession(msgspec.Struct, frozen=True):
    user_id: str
    reason: SessionEnd
    at: datetime


SessionCommand = OpenSession | RefreshSession | EndSession


def decide_session(command: SessionCommand, session: Session) -> list[SessionEvent]:
    match command:
        case OpenSession(session_id, user_id, provider, at, expires_at):
            return [] if session.session_id else [SessionOpened(session_id, user_id, provider, at, expires_at)]
        case RefreshSession(generation, at):
            if not (session.session_id and session.expires_at) or session.ended or at >= session.expires_at:
                raise Unauthenticated("This login is over; log in again.")
            if generation > session.generation:  # the log was restored to before it was issued
                raise Unauthenticated("This login is not known here any more; log in again.")
            if generation == session.generation:
                return [SessionRefreshed(session.session_id, session.user_id, generation + 1, at)]
            just_now = session.refreshed_at is not None and at - session.refreshed_at <= GRACE
            if generation == session.generation - 1 and just_now:
                return []
            return [SessionEnded(session.session_id, session.user_id, "reuse", at)]
        case EndSession(user_id, reason, at):
            if session.session_id is None or session.user_id != user_id:
                raise NotFound("There is no such login of yours.")
            return [] if session.ended else [SessionEnded(session.session_id, user_id, reason, at)]
        case _:
            assert_never(command)


def evolve_session(session: Session, event: SessionEvent) -> Session:
    match event:
        case SessionOpened(session_id, user_id, provider, at, expires_at):
            return Session(session_id, user_id, provider, 0, None, expires_at, at=at)
        case SessionRefreshed(_, _, generation, at):
            return msgspec.structs.replace(session, generation=generation, refreshed_at=at)
        case SessionEnded(reason=reason):
            return msgspec.structs.replace(session, ended=reason)
        case _:
            assert_never(event)


def asks_of_session(event: SessionEvent) -> SessionCommand | None:
    """The command that leads to an event."""
    match event:
        case SessionOpened(session_id, user_id, provider, at, expires_at):
            return OpenSession(session_id, user_id, provider, at, expires_at)
        case SessionRefreshed(generation=generation, at=at):
            return RefreshSession(generation - 1, at)
        case SessionEnded(_, user_id, reason, at):
            return EndSession(user_id, reason, at) if reason != "reuse" else None  # of which generation is not told
        case _:
            assert_never(event)


# --- keys


class Key(msgspec.Struct, frozen=True):
    """An API key as its events leave it."""

    key_id: UUID | None = None
    user_id: str = ""
    name: str = ""
    scopes: tuple[str, ...] = ()
    digest: str = ""
    created_at: datetime | None = None
    expires_at: datetime | None = None
    used_at: datetime | None = None
    revoked: bool = False


class CreateKey(msgspec.Struct, frozen=True):
    key_id: UUID
    user_id: str
    name: str
    scopes: tuple[str, ...]
    digest: str
    at: datetime
    expires_at: datetime | None


class UseKey(msgspec.Struct, frozen=True):
    """Somebody gave the key with a secret of this digest. Raises Unauthenticated, whatever the reason is."""

    digest: str
    at: datetime


class RevokeKey(msgspec.Struct, frozen=True):
    user_id: str
    at: datetime


KeyCommand = CreateKey | UseKey | RevokeKey


def decide_key(command: KeyCommand, key: Key) -> list[KeyEvent]:
    match command:
        case CreateKey(key_id, user_id, name, scopes, digest, at, expires_at):
            return [] if key.key_id else [KeyCreated(key_id, user_id, name, list(scopes), digest, at, expires_at)]
        case UseKey(digest, at):
            fits = compare_digest(digest, key.digest)
            if not (fits and key.key_id) or key.revoked or (key.expires_at and at >= key.expires_at):
                raise Unauthenticated("The API key is not believed: it is none, was revoked, or has expired.")
            told = key.used_at is not None and at - key.used_at < USE_TOLD_AFTER
            return [] if told else [KeyUsed(key.key_id, key.user_id, at)]
        case RevokeKey(user_id, at):
            if key.key_id is None or key.user_id != user_id:
                raise NotFound("There is no such key of yours.")
            return [] if key.revoked else [KeyRevoked(key.key_id, user_id, at)]
        case _:
            assert_never(command)


def evolve_key(key: Key, event: KeyEvent) -> Key:
    match event:
        case KeyCreated(key_id, user_id, name, scopes, digest, at, expires_at):
            return Key(key_id, user_id, name, tuple(scopes), digest, at, expires_at)
        case KeyUsed(at=at):
            return msgspec.structs.replace(key, used_at=at)
        case KeyRevoked():
            return msgspec.structs.replace(key, revoked=True)
        case _:
            assert_never(event)


def asks_of_key(event: KeyEvent) -> KeyCommand | None:
    """The command that leads to an event."""
    match event:
        case KeyCreated(key_id, user_id, name, scopes, digest, at, expires_at):
            return CreateKey(key_id, user_id, name, tuple(scopes), digest, at, expires_at)
        case KeyUsed():
            return None  # with which secret is not told
        case KeyRevoked(_, user_id, at):
            return RevokeKey(user_id, at)
        case _:
            assert_never(event)


# --- how many keys


class Admitted(msgspec.Struct, frozen=True):
    at: datetime
    expires_at: datetime | None


class Keyring(msgspec.Struct, frozen=True):
    """The keys that a user was admitted, without those that were told gone or had expired since."""

    keys: Mapping[UUID, Admitted] = {}

    def left(self, at: datetime, gone: Collection[UUID] = ()) -> dict[UUID, Admitted]:
        """Those that count."""
        return {
            key_id: key
            for key_id, key in self.keys.items()
            if key_id not in gone and (key.expires_at is None or key.expires_at > at)
        }


class AdmitKey(msgspec.Struct, frozen=True):
    """A user is about to make a key. `gone`: those admitted that are none now. Raises Conflict when there are too many.

    The count is guarded here, in one place for each user: what people see of keys is a moment old.
    """

    user_id: str
    key_id: UUID
    gone: tuple[UUID, ...]
    at: datetime
    expires_at: datetime | None


def decide_keyring(command: AdmitKey, ring: Keyring) -> list[KeyAdmitted]:
    if len(ring.left(command.at, command.gone)) >= MOST_KEYS:
        raise Conflict(f"You have {MOST_KEYS} keys, which is all that one may have: revoke one that is not used.")
    gone = [key_id for key_id in command.gone if key_id in ring.keys]
    return [KeyAdmitted(command.user_id, command.key_id, gone, command.at, command.expires_at)]


def evolve_keyring(ring: Keyring, event: KeyAdmitted) -> Keyring:
    return Keyring({**ring.left(event.at, event.gone), event.key_id: Admitted(event.at, event.expires_at)})


def asks_of_keyring(event: KeyAdmitted) -> AdmitKey:
    """The command that leads to an event."""
    return AdmitKey(event.user_id, event.key_id, tuple(event.gone), event.at, event.expires_at)


USERS = Decider("identity.users", UserEvent, decide_user, evolve_user, Account(), asks_of_user)
SESSIONS = Decider("identity.sessions", SessionEvent, decide_session, evolve_session, Session(), asks_of_session)
KEYRINGS = Decider("identity.keyrings", KeyAdmitted, decide_keyring, evolve_keyring, Keyring(), asks_of_keyring)
KEYS = Decider("identity.keys", KeyEvent, decide_key, evolve_key, Key(), asks_of_key)
Users = Aggregate[UserCommand, Account, UserEvent]
Sessions = Aggregate[SessionCommand, Session, SessionEvent]
Keyrings = Aggregate[AdmitKey, Keyring, KeyAdmitted]
Keys = Aggregate[KeyCommand, Key, KeyEvent]
