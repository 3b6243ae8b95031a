"""What is told of an error of Postgres: whether the server is away, and how it is mended."""

import asyncpg
import pytest

from common.postgres import POSTGRES_FAILED, told

ADDRESS = "BOXOFFICE_DATABASE_URL"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "Connect call failed"),
        TimeoutError(),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("got result for unknown protocol state 0"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.CannotConnectNowError("the database system is starting up"),
        asyncpg.AdminShutdownError("terminating connection due to administrator command"),
        asyncpg.CrashShutdownError("terminating connection because of crash of another server process"),
        asyncpg.QueryCanceledError("canceling statement due to conflict with recovery"),
        asyncpg.DeadlockDetectedError("deadlock detected"),
        asyncpg.PostgresIOError("could not read block"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_server_that_is_away_is_waited_for(error: Exception) -> None:
    assert isinstance(error, POSTGRES_FAILED)
    assert told(error).startswith(f"Postgres does not answer: {type(error).__name__}")
    assert told(error).endswith("; it goes on by itself once the server answers")


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (asyncpg.UndefinedTableError('relation "checkpoint" does not exist'), "run `boxoffice migrate`"),
        (asyncpg.UndefinedColumnError('column "note" does not exist'), "run `boxoffice migrate`"),
        (asyncpg.InvalidCatalogNameError('no database "nope"'), f"create that database, or correct {ADDRESS}"),
        (asyncpg.InvalidPasswordError('password authentication failed for user "sam"'), f"correct {ADDRESS}"),
        (asyncpg.ClientConfigurationError("invalid DSN"), f"correct {ADDRESS}"),
        (asyncpg.InsufficientPrivilegeError("permission denied"), "run `boxoffice migrate`, or grant that"),
        (asyncpg.ReadOnlySQLTransactionError("read-only"), f"have {ADDRESS} name the primary server, not a standby"),
        (asyncpg.DataError("integer out of range"), "deploy code that can store this"),
        (asyncpg.PostgresSyntaxError('syntax error at or near "selekt"'), "deploy code that asks otherwise"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_it_refuses_is_for_somebody_to_mend(error: Exception, mend: str) -> None:
    assert isinstance(error, POSTGRES_FAILED)
    assert told(error).startswith(f"Postgres refuses: {type(error).__name__}: {error}; {mend}")
