"""What users, their sessions and their keys may do and become."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given as any_of
from hypothesis import strategies as st

from common.errors import Conflict, DomainError, NotFound, Unauthenticated
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
from services.identity.domain import (
    DEV,
    GRACE,
    KEYRINGS,
    KEYS,
    MOST_KEYS,
    SESSIONS,
    USE_TOLD_AFTER,
    USERS,
    Account,
    AdmitKey,
    ChangeRole,
    CreateKey,
    EndLogins,
    EndSession,
    KeepOperator,
    Key,
    KeyCommand,
    Keyring,
    LogIn,
    OpenSession,
    RefreshSession,
    RevokeKey,
    Session,
    SessionCommand,
    UseKey,
    UserCommand,
    place_id_of,
    user_id_of,
)
from tests.given import Given, fold, recorded

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
GOOGLE = "https://accounts.google.com"
ADA = user_id_of(GOOGLE, "ada")


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


# Users


def user(*events: UserEvent) -> Given[UserCommand, Account, UserEvent]:
    return Given(USERS, *events)


def log_in(role: Role | None = None, new_role: Role = "buyer") -> LogIn:
    return LogIn(GOOGLE, "ada", role, new_role, NOON)


def registered(role: Role = "buyer") -> UserRegistered:
    return UserRegistered(ADA, GOOGLE, "ada", role, NOON)


def changed(role: Role, by: str | None = "olga") -> RoleChanged:
    return RoleChanged(ADA, role, by, NOON)


def test_who_comes_for_the_first_time_is_registered_as_what_new_ones_are() -> None:
    user().when(log_in(new_role="seller")).then(registered("seller"))


def test_who_comes_for_the_first_time_is_what_the_settings_make_of_them() -> None:
    user().when(log_in("operator")).then(registered("operator"))


def test_who_is_an_operator_by_the_settings_alone_is_none_when_they_name_somebody_else() -> None:
    command = KeepOperator(ADA, "buyer", NOON)
    user(registered("operator")).when(command).then(changed("buyer", None))
    user(registered(), changed("operator", None)).when(command).then(changed("buyer", None))
    user(registered(), changed("operator", "olga")).when(command).then()
    user(registered("seller")).when(command).then()
    user(registered("operator")).when(KeepOperator(ADA, "operator", NOON)).then()


def test_what_let_a_user_in_ends_and_what_comes_later_does_not() -> None:
    user(registered()).when(EndLogins(ADA, "olga", NOON)).then(LoginsEnded(ADA, "olga", NOON))
    user().when(EndLogins(ADA, "olga", NOON)).refused(NotFound, "no user")
    account = user(registered(), LoginsEnded(ADA, None, NOON)).state
    for before in (after(-60), NOON):
        with pytest.raises(Unauthenticated, match="log in again"):
            account.let_in_since(before)
    account.let_in_since(after(1))
    user(registered()).state.let_in_since(NOON)


def test_who_comes_again_is_known() -> None:
    user(registered()).when(log_in(new_role="seller")).then()


def test_the_settings_make_somebody_known_an_operator() -> None:
    user(registered()).when(log_in("operator")).then(changed("operator", by=None))


def test_who_is_an_operator_by_the_settings_is_none_when_they_do_not_say_so_any_more() -> None:
    user(registered("operator")).when(log_in()).then(changed("buyer", by=None))
    user(registered(), changed("operator", by=None)).when(log_in()).then(changed("buyer", by=None))


def test_who_is_an_operator_by_another_stays_one_whatever_the_settings_say() -> None:
    user(registered(), changed("operator")).when(log_in()).then()


def test_what_an_operator_made_of_somebody_lasts() -> None:
    user(registered("seller"), changed("buyer")).when(log_in(new_role="seller")).then()


def test_an_operator_changes_a_role_and_the_log_says_who() -> None:
    user(registered()).when(ChangeRole(ADA, "seller", "olga", NOON)).then(changed("seller", by="olga"))


def test_a_role_that_somebody_has_is_not_changed() -> None:
    user(registered("seller")).when(ChangeRole(ADA, "seller", "olga", NOON)).then()


def test_nobody_changes_their_own_role() -> None:
    user(registered("operator")).when(ChangeRole(ADA, "buyer", ADA, NOON)).refused(Conflict, "another operator")


def test_nobody_changes_the_role_of_who_is_not_known() -> None:
    user().when(ChangeRole(ADA, "seller", "olga", NOON)).refused(NotFound, "no user")


def test_a_subject_is_somebody_else_at_another_issuer() -> None:
    assert user_id_of(GOOGLE, "ada") == ADA
    assert len({ADA, user_id_of("https://other.example", "ada"), user_id_of(GOOGLE, "Ada"), "ada"}) == 4


def test_a_developer_is_called_as_he_says() -> None:
    assert user_id_of(DEV, "ada") == "ada"
    assert place_id_of("ada") != place_id_of("Ada")


# Sessions

SESSION = UUID(int=1)
OPENED = SessionOpened(SESSION, ADA, "google", NOON, after(3600))


def session(*events: SessionEvent) -> Given[SessionCommand, Session, SessionEvent]:
    return Given(SESSIONS, *events)


def refreshed(generation: int, at: datetime) -> SessionRefreshed:
    return SessionRefreshed(SESSION, ADA, generation, at)


def ended(reason: SessionEnd = "logout", at: datetime = NOON) -> SessionEnded:
    return SessionEnded(SESSION, ADA, reason, at)


def test_a_session_is_opened_once() -> None:
    opening = OpenSession(SESSION, ADA, "google", NOON, after(3600))
    session().when(opening).then(OPENED)
    session(OPENED).when(opening).then()
    session(OPENED, ended()).when(opening).then()


def test_a_refresh_token_is_exchanged_for_the_next() -> None:
    session(OPENED).when(RefreshSession(0, after(60))).then(refreshed(1, after(60)))
    session(OPENED, refreshed(1, after(60))).when(RefreshSession(1, after(61))).then(refreshed(2, after(61)))


@pytest.mark.parametrize("late", [-3.0, 0.0, 9.999999, 10.0])
def test_whose_answer_was_lost_may_ask_again_for_a_while(late: float) -> None:
    """Also at a replica whose clock is behind."""
    session(OPENED, refreshed(1, after(60))).when(RefreshSession(0, after(60 + late))).then()


def test_who_comes_again_later_has_stolen_it() -> None:
    late = after(60) + GRACE + MOMENT
    session(OPENED, refreshed(1, after(60))).when(RefreshSession(0, late)).then(ended("reuse", late))


def test_the_one_before_the_last_is_stolen_however_soon_it_comes() -> None:
    exchanged = session(OPENED, refreshed(1, after(60)), refreshed(2, after(60)))
    exchanged.when(RefreshSession(0, after(60))).then(ended("reuse", after(60)))


def test_a_session_that_is_over_is_not_refreshed() -> None:
    session(OPENED, ended()).when(RefreshSession(0, after(1))).refused(Unauthenticated, "over")
    session(OPENED, refreshed(1, NOON), ended("reuse")).when(RefreshSession(1, after(1))).refused(
        Unauthenticated, "over"
    )


@pytest.mark.parametrize("generation", [0, 1])
def test_a_session_is_refreshed_until_it_expires(generation: int) -> None:
    given = session(OPENED, refreshed(1, after(3599)))
    given.when(RefreshSession(1, after(3600) - MOMENT)).then(refreshed(2, after(3600) - MOMENT))
    given.when(RefreshSession(generation, after(3600))).refused(Unauthenticated, "over")


def test_there_is_nothing_to_refresh_where_nobody_logged_in() -> None:
    session().when(RefreshSession(0, NOON)).refused(Unauthenticated, "over")


def test_a_token_of_a_generation_that_the_log_does_not_know_any_more_ends_nothing() -> None:
    """The log was restored to a time before; nobody has stolen anything."""
    session(OPENED).when(RefreshSession(1, after(60))).refused(Unauthenticated, "not known here any more")


def test_a_session_is_ended_by_its_user_once() -> None:
    session(OPENED).when(EndSession(ADA, "logout", NOON)).then(ended())
    session(OPENED, ended("reuse")).when(EndSession(ADA, "logout", NOON)).then()


def test_a_session_is_ended_by_nobody_else() -> None:
    session(OPENED).when(EndSession("eve", "logout", NOON)).refused(NotFound, "no such login of yours")
    session().when(EndSession("", "logout", NOON)).refused(NotFound, "no such login of yours")


@any_of(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20)), max_size=12))
def test_whoever_comes_with_whatever_a_session_goes_forward_or_ends(tries: list[tuple[int, int]]) -> None:
    """Generations are told one after the other, and nothing after the end; a token exchanged serves nobody later."""
    events: list[SessionEvent] = recorded([OPENED])
    at, exchanged = NOON, dict[int, datetime]()
    for generation, wait in tries:
        at += timedelta(seconds=wait)
        state = fold(SESSIONS, events)
        try:
            made = list(SESSIONS.decide(RefreshSession(generation, at), state))
        except DomainError:
            assert state.ended or generation > state.generation
            continue
        if generation in exchanged and at - exchanged[generation] > GRACE:
            assert made == [ended("reuse", at)]
        for event in made:
            if isinstance(event, SessionRefreshed):
                assert generation not in exchanged
                exchanged[generation] = at
        events += recorded(made, after=len(events))
    told = [event.generation for event in events if isinstance(event, SessionRefreshed)]
    assert told == list(range(1, len(told) + 1))
    assert [event for event in events if isinstance(event, SessionEnded)] in ([], events[-1:])


# Keys

KEY = UUID(int=2)
DIGEST, OTHER = "ab" * 32, "cd" * 32
CREATED = KeyCreated(KEY, ADA, "import", ["tickets:write"], DIGEST, NOON, after(3600))


def key(*events: KeyEvent) -> Given[KeyCommand, Key, KeyEvent]:
    return Given(KEYS, *events)


def used(at: datetime) -> KeyUsed:
    return KeyUsed(KEY, ADA, at)


def test_a_key_is_created_once() -> None:
    creating = CreateKey(KEY, ADA, "import", ("tickets:write",), DIGEST, NOON, after(3600))
    key().when(creating).then(CREATED)
    key(CREATED).when(creating).then()
    key(CREATED, KeyRevoked(KEY, ADA, NOON)).when(creating).then()


def test_that_a_key_is_used_is_told_once_in_a_while() -> None:
    key(CREATED).when(UseKey(DIGEST, after(1))).then(used(after(1)))
    key(CREATED, used(after(1))).when(UseKey(DIGEST, after(1) + USE_TOLD_AFTER - MOMENT)).then()
    later = after(1) + USE_TOLD_AFTER
    key(CREATED, used(after(1))).when(UseKey(DIGEST, later)).then(used(later))


UNUSABLE = {
    "another secret": (key(CREATED), OTHER, NOON),
    "another secret of a key in use": (key(CREATED, used(NOON)), OTHER, NOON),
    "a part of the digest": (key(CREATED), DIGEST[:-1], NOON),
    "no digest": (key(CREATED), "", NOON),
    "expired just now": (key(CREATED), DIGEST, after(3600)),
    "expired, and in use until then": (key(CREATED, used(after(3599))), DIGEST, after(3600)),
    "revoked": (key(CREATED, KeyRevoked(KEY, ADA, NOON)), DIGEST, NOON),
    "no key": (key(), DIGEST, NOON),
    "no key and no digest": (key(), "", NOON),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_key_is_refused_without_the_reason(case: str) -> None:
    """Whoever tries does not learn which keys there are."""
    given, digest, at = UNUSABLE[case]
    given.when(UseKey(digest, at)).refused(
        Unauthenticated, r"^The API key is not believed: it is none, was revoked, or has expired\.$"
    )


def test_a_key_without_an_end_is_good_until_it_is_revoked() -> None:
    endless = KeyCreated(KEY, ADA, "import", [], DIGEST, NOON, None)
    at = NOON + timedelta(days=36_500)
    key(endless).when(UseKey(DIGEST, at)).then(used(at))


def test_a_key_is_revoked_by_its_user_once() -> None:
    revoked = KeyRevoked(KEY, ADA, NOON)
    key(CREATED).when(RevokeKey(ADA, NOON)).then(revoked)
    key(CREATED, revoked).when(RevokeKey(ADA, NOON)).then()


def test_a_key_is_revoked_by_nobody_else() -> None:
    key(CREATED).when(RevokeKey("eve", NOON)).refused(NotFound, "no such key of yours")
    key().when(RevokeKey("", NOON)).refused(NotFound, "no such key of yours")


# How many keys


def admitted(number: int, expires_at: datetime | None = None, gone: tuple[UUID, ...] = ()) -> KeyAdmitted:
    return KeyAdmitted(ADA, UUID(int=number), list(gone), NOON, expires_at)


def keyring(*events: KeyAdmitted) -> Given[AdmitKey, Keyring, KeyAdmitted]:
    return Given(KEYRINGS, *events)


def admit(number: int, at: datetime = NOON, gone: tuple[UUID, ...] = ()) -> AdmitKey:
    return AdmitKey(ADA, UUID(int=number), gone, at, None)


ALL = [admitted(number) for number in range(MOST_KEYS)]


def test_nobody_has_more_keys_than_they_may() -> None:
    keyring(*ALL[1:]).when(admit(99)).then(admitted(99))
    keyring(*ALL).when(admit(99)).refused(Conflict, "You have 50 keys")


def test_keys_that_are_gone_or_have_expired_make_room() -> None:
    first, nobodys = UUID(int=0), UUID(int=1000)
    keyring(*ALL).when(admit(99, gone=(first, nobodys))).then(admitted(99, gone=(first,)))
    keyring(*ALL).when(admit(99, gone=(nobodys,))).refused(Conflict, "You have 50 keys")
    keyring(*ALL, admitted(99, gone=(first,))).when(admit(100)).refused(Conflict, "You have 50 keys")
    brief = [*ALL[1:], admitted(50, after(60))]
    keyring(*brief).when(admit(99, after(59))).refused(Conflict, "You have 50 keys")
    keyring(*brief).when(admit(99, after(60))).then(KeyAdmitted(ADA, UUID(int=99), [], after(60), None))
