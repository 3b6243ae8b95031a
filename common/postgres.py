"""What is wrong when Postgres does not do what it is asked, and how that is mended."""

import asyncpg

POSTGRES_FAILED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""All that asyncpg raises, depending on what it was doing."""

PASSING = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # asyncpg's, as a connection goes
    asyncpg.PostgresConnectionError,
    asyncpg.PostgresSystemError,
    asyncpg.exceptions.OperatorInterventionError,  # it starts, stops or recovers
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidCachedStatementError,
)

UNSTORABLE = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
"""It is there, and what it is given is not as the tables can hold it (DataError: also in asyncpg)."""

NOT_MIGRATED = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError)
"""Its tables are missing, or of another version."""

MISDIRECTED = (
    asyncpg.ClientConfigurationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""BOXOFFICE_DATABASE_URL names what is not there, or what we may not use."""


AWAY = "Postgres does not answer"
"""How what is told of one that is away begins."""


def is_away(error: Exception) -> bool:
    """Whether the connection was lost or the server is not there now: the same succeeds once it is.

    It is refused, otherwise, and somebody has to `mend` that first.
    """
    return isinstance(error, PASSING) and not isinstance(error, ValueError)  # asyncpg's for what we gave it


def told(error: Exception, if_away: str = "it goes on by itself once the server answers") -> str:
    """One of `POSTGRES_FAILED` in a line: what is wrong, and how to mend it."""
    return f"{what(error)}; {mend(error) or if_away}"


def what(error: Exception) -> str:
    """What is wrong."""
    said = f"{type(error).__name__}: {error}".removesuffix(": ")
    return f"{AWAY}: {said}" if is_away(error) else f"Postgres refuses: {said}"


def mend(error: Exception) -> str | None:
    """What is to be done about one of `POSTGRES_FAILED`; None for a server that is away."""
    match error:
        case asyncpg.exceptions.InsufficientResourcesError():
            return "give Postgres more of it"
        case asyncpg.InvalidCatalogNameError():
            return "create that database, or correct BOXOFFICE_DATABASE_URL"
        case asyncpg.InsufficientPrivilegeError():
            return "run `boxoffice migrate`, or grant that to the user in BOXOFFICE_DATABASE_URL"
        case asyncpg.ReadOnlySQLTransactionError():
            return "have BOXOFFICE_DATABASE_URL name the primary server, not a standby"
        case _ if isinstance(error, UNSTORABLE):
            return "deploy code that can store this"
        case _ if isinstance(error, MISDIRECTED):
            return "correct BOXOFFICE_DATABASE_URL"
        case _ if isinstance(error, NOT_MIGRATED):
            return "run `boxoffice migrate`"
        case _ if is_away(error):
            return None
        case _:
            return "deploy code that asks otherwise: this is a bug"
