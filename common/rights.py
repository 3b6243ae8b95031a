"""Who may do what on NATS and in Postgres: made from the topology, so that it is written once."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from common.topology import (
    ANSWERS,
    CONSUMERS,
    LISTENS,
    OVERSEES,
    REDELIVER,
    REDELIVERS,
    RESTORED,
    RESTORING,
    SERVICES,
    STREAMS,
    Stream,
)

MIGRATE = "migrate"
"""Who manages streams, consumers and schemas: `boxoffice migrate`, and other commands of an operator."""

VERBS = ("PING", "INFO", "STATS")
"""What every service of nats.micro is asked about itself (ADR-32)."""

STATS = "$SRV.STATS"
"""Where all services are asked at once how they are."""

ANSWER_WITHIN = "2m"
"""So long after a question its answer may be sent, once. Who asks waits 10 s, a minute where work is handed over."""


class Rights(msgspec.Struct, frozen=True):
    """What a NATS user may do: subjects to publish on and to subscribe to, and whether it answers what it is asked.

    `never`: on what it may not publish although it is in `publish`.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    never: tuple[str, ...] = ()
    answers: bool = False

    def permissions(self) -> dict[str, Any]:
        """As the configuration of nats-server has it."""
        publish: dict[str, Any] = {"allow": list(self.publish)}
        if self.never:
            publish["deny"] = list(self.never)
        told: dict[str, Any] = {"publish": publish, "subscribe": {"allow": list(self.subscribe)}}
        if self.answers:
            told["allow_responses"] = {"max": 1, "expires": ANSWER_WITHIN}
        return told


def inbox_of(user: str) -> str:
    """The prefix of a user's inboxes, where it alone hears answers."""
    return f"_INBOX_{user}"


def reads(service: str) -> tuple[Stream, ...]:
    """The streams that a service reads: its own and others'."""
    return tuple(stream for stream in STREAMS if service in (*stream.writers, *stream.readers))


def rights_of(service: str) -> Rights:
    """What a service may do on NATS: write and read its streams, hear by its consumers, ask and answer."""
    publish: list[str] = []
    for stream in STREAMS:
        if service in stream.writers:
            publish += stream.subjects
    own = [consumer for consumer in CONSUMERS if consumer.service == service]
    for consumer in own:
        publish += [
            f"dead.{consumer.durable}",
            f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.durable}",
            f"$JS.API.CONSUMER.INFO.{consumer.stream}.{consumer.durable}",
            f"$JS.ACK.{consumer.stream}.{consumer.durable}.>",
        ]
    publish.append(f"$JS.API.STREAM.INFO.{RESTORING.name}")
    for stream in reads(service):
        publish += [
            f"$JS.API.STREAM.INFO.{stream.name}",
            f"$JS.API.STREAM.MSG.GET.{stream.name}",
            f"$JS.API.DIRECT.GET.{stream.name}",
            f"$JS.API.CONSUMER.CREATE.{stream.name}.*",
            f"$JS.FC.{stream.name}.>",
        ]
    # The name of a consumer is the one in the subject. At `.CREATE.<stream>` the server (2.15) takes it
    # from the request, and changes the consumer of that name: everybody's durable ones.
    read = {stream.name for stream in reads(service)}
    never = [f"$JS.API.CONSUMER.CREATE.{each.stream}.{each.durable}" for each in CONSUMERS if each.stream in read]
    if service == OVERSEES:
        publish += [f"$JS.API.STREAM.INFO.{stream.name}" for stream in STREAMS if stream.name not in read]
        publish += [f"$JS.API.CONSUMER.INFO.{each.stream}.{each.durable}" for each in CONSUMERS if each not in own]
        publish.append(STATS)
    publish += [f"requests.{asked}.*" for asked, askers in ANSWERS.items() if service in (asked, *askers)]
    redeliver = [f"requests.{each}.{REDELIVER}" for each in LISTENS]
    if service == REDELIVERS:
        publish += redeliver
    else:
        never += [subject for subject in redeliver if subject.rpartition(".")[0] + ".*" in publish]
    heard = [f"{inbox_of(service)}.>", RESTORED]
    answers = service in ANSWERS or service in LISTENS
    if answers:
        heard += [
            f"requests.{service}.*" if service in ANSWERS else f"requests.{service}.{REDELIVER}",
            *(f"$SRV.{verb}{whom}" for verb in VERBS for whom in ("", f".{service}", f".{service}.*")),
        ]
    return Rights(tuple(publish), tuple(heard), tuple(never), answers=answers)


MIGRATES = Rights(
    publish=("$JS.API.>", "$JS.FC.>", "$JS.SNAPSHOT.>", RESTORED),
    subscribe=(f"{inbox_of(MIGRATE)}.>", RESTORED, *(subject for stream in STREAMS for subject in stream.subjects)),
)
"""What an operator may do: manage, read and watch, back up and restore, and write nothing else."""


def everybody() -> Mapping[str, Rights]:
    """What each user may do, by name."""
    return {**{service: rights_of(service) for service in SERVICES}, MIGRATE: MIGRATES}


def nats_users(passwords: Mapping[str, str]) -> list[dict[str, Any]]:
    """The users for the configuration of nats-server (`authorization { users = ... }`), each with its password."""
    return [
        {"user": name, "password": passwords[name], "permissions": rights.permissions()}
        for name, rights in everybody().items()
    ]


def nats_configuration() -> str:
    """The same as a file for `include`, with passwords from the server's environment (`$NATS_PASSWORD_ORDERS`)."""
    variables = {name: f"$NATS_PASSWORD_{name.upper()}" for name in everybody()}
    text = json.dumps({"users": nats_users(variables)}, indent=2)
    for variable in variables.values():  # a variable of the environment stands without quotes
        text = text.replace(f'"{variable}"', variable)
    return f"# Made by `boxoffice rights nats` from common/topology.py.\nauthorization: {text}\n"


def role_of(user: str) -> str:
    """A user's role in Postgres."""
    return f"boxoffice_{user}"


GRANT = """
do $$ begin
    if exists (select from pg_roles where rolname = '{role}') then
        grant usage on schema "{schema}" to {role};
        grant select, insert, update, delete on {tables} to {role};
        grant usage on all sequences in schema "{schema}" to {role};
    end if;
end $$
"""


def granted(schema: str, service: str, table: str = "") -> str:
    """SQL that lets a service read and write in a schema, all tables that are there or one of them, and nothing else.

    It does nothing in a database without that role, where one user does everything.
    """
    tables = f'"{schema}"."{table}"' if table else f'all tables in schema "{schema}"'
    return GRANT.format(role=role_of(service), schema=schema, tables=tables)


ROLE = """
do $$ begin
    if not exists (select from pg_roles where rolname = '{role}') then
        create role {role} login;
    end if;
end $$;
"""
DATABASE = """
do $$ begin
    execute format('revoke all on database %I from public', current_database());
    execute format('grant connect on database %I to {roles}', current_database());
    execute format('grant create on database %I to {migrate}', current_database());
end $$;
revoke create on schema public from public;
"""
TAKE_OVER = """
do $$
declare
    found record;
begin
    for found in select nspname from pg_namespace
        where nspowner = current_user::regrole and nspname !~ '^pg_' and nspname not in ('public', 'information_schema')
    loop
        execute format('alter schema %I owner to {migrate}', found.nspname);
    end loop;
    for found in select nspname, relname
        from pg_class join pg_namespace on pg_namespace.oid = relnamespace
        where relowner = current_user::regrole and relkind in ('r', 'p', 'v', 'm') and relpersistence <> 't'
            and nspname !~ '^pg_' and nspname <> 'information_schema'
    loop
        execute format('alter table %I.%I owner to {migrate}', found.nspname, found.relname);
    end loop;
end $$;
"""


def postgres_roles() -> str:
    """SQL, safe to repeat, for whoever administers a database: one role for each service, and one that makes schemas.

    `boxoffice migrate`, as the latter, then lets each service use what is its own.
    """
    roles = [role_of(user) for user in everybody()]
    made = "".join(ROLE.format(role=role) for role in roles)
    database = DATABASE.format(roles=", ".join(roles), migrate=role_of(MIGRATE))
    return made + database


def postgres_take_over() -> str:
    """SQL, safe to repeat: what whoever runs it has made in a database becomes that of the role that makes schemas.

    For one that was in use before there were roles, and holds nothing else.
    """
    return TAKE_OVER.format(migrate=role_of(MIGRATE))


LET_IN = """
\\getenv password {variable}
\\if :{{?password}}
alter role {role} password :'password';
\\unset password
\\endif
"""


def password_variable(user: str) -> str:
    """The variable in psql's environment that holds the password of a user's role."""
    return f"BOXOFFICE_{user.upper()}_PASSWORD"


def postgres_configuration() -> str:
    """The same as a file for psql (15 or newer), with passwords from its environment.

    A role whose variable is not there keeps the password that it has.
    """
    head = f"""\
-- Made by `boxoffice rights postgres`. For psql (15 or newer), as whoever may create roles; safe to repeat.
-- A role gets the password that psql's environment holds, in {password_variable("orders")} and so on, or keeps its own.
\\set ON_ERROR_STOP on
begin;
"""
    passwords = "".join(LET_IN.format(role=role_of(user), variable=password_variable(user)) for user in everybody())
    return f"{head}{postgres_roles()}{passwords}commit;\n"
