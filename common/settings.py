"""Settings from the environment, or from files that it names: `BOXOFFICE_<NAME>`, checked and typed."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from common.explain import explain

PREFIX = "BOXOFFICE_"
FILE = "_FILE"
SECRET = {"secret", "password", "key", "providers"}
"""Words in the names of settings whose values are shown to nobody."""

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]

DatabaseUrl = Annotated[
    str, msgspec.Meta(pattern="^postgres(ql)?://", description="An address like postgresql://user@host:5432/database")
]


PublicUrl = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(https://[^/?#@\s]+|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?)?(?!\n)$",
        description="An address like https://tickets.example.org, without a path; http only on this machine",
    ),
]

Proxies = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[0-9A-Fa-f:./, ]*(?!\n)$",
        description="Addresses and networks with commas between them, as 10.0.0.0/8, fd00::/8",
    ),
]

RateText = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(off|[1-9][0-9]{0,8}/(second|minute|hour))(?!\n)$",
        description="A rate like 60/minute (or /second, /hour), or off",
    ),
]


CollectorUrl = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(https?://[^/?#@\s]+(/[^?#@\s]*)?)?(?!\n)$",
        description="The base address of a collector like http://otel-collector:4318, without user, ? and #",
    ),
]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service needs to know. A service adds its own in a subclass.

    `nats_url`: an address, or several of one cluster with commas between them, each with the user and the password.
    `auth`: `dev` believes whoever says who they are, `on` only what the identity service gave. `public_url`: under
    which address browsers find the system. `operators`: who may run it: addresses that a provider has verified, or
    names of developers, with commas between them. `otlp_endpoint`: to which collector traces are sent, empty: none are
    made; `trace_ratio`: of how many that begin here. `metrics_port`: where `/metrics` is, 0: on `port`.
    `log_bytes`: what NATS may store, as its configuration has it, to tell when it is full; 0: nobody said.
    """

    nats_url: str = "nats://127.0.0.1:4222"
    database_url: DatabaseUrl = "postgresql://postgres@127.0.0.1:5432/postgres"
    host: str = "127.0.0.1"
    port: Port = 8080
    auth: Literal["dev", "on"] = "on"
    public_url: PublicUrl = ""
    operators: str = "operator"
    replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    connections: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 5_000
    sockets: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    trusted_proxies: Proxies = ""
    rate_login: RateText = "120/minute"
    rate_refused: RateText = "300/minute"
    rate_orders: RateText = "60/minute"
    rate_batches: RateText = "60/minute"
    rate_changes: RateText = "600/minute"
    rate_reads: RateText = "1200/minute"
    rate_address: RateText = "3000/minute"
    otlp_endpoint: CollectorUrl = ""
    trace_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    log_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    metrics_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def operator_names(self) -> frozenset[str]:
        """Who may run the system."""
        return frozenset(name.strip() for name in self.operators.split(",")) - {""}


def addresses(urls: str) -> list[str]:
    """Each of several addresses with commas between them."""
    return re.split(r",(?=[a-z]+://)", urls)


def without_password(url: str) -> str:
    """An address as it may be shown."""
    shown = ",".join(re.sub(r"//([^:/@]*):.*@", r"//\1:***@", address) for address in addresses(url))
    return re.sub(r"(?i)(password=)[^&]*", r"\1***", shown)


class BadSetting(Exception):
    """An environment variable that cannot be used; says which, what it holds and what is allowed."""


T = TypeVar("T", bound=Settings)


def variables(name: str, of: str = "") -> tuple[str, ...]:
    """The variables that may hold a setting, the one that comes first in front; each also with `_FILE` behind it."""
    general = PREFIX + name.upper()
    return (f"{PREFIX}{of.upper()}_{name.upper()}", general) if of else (general,)


def named(name: str, environment: Mapping[str, str], of: str = "") -> str | None:
    """The variable that holds a setting, or says in which file it is; None if none does. Raises BadSetting."""
    for variable in variables(name, of):
        there = [each for each in (variable, variable + FILE) if each in environment]
        if len(there) > 1:
            raise BadSetting(f"{variable} and {variable}{FILE} are both set: unset one of them")
        if there:
            return there[0]
    return None


def load(settings: type[T], environment: Mapping[str, str] = os.environ, of: str = "") -> T:
    """The settings that the environment names, defaults for the rest. Raises BadSetting.

    `of` a service: `BOXOFFICE_ORDERS_NATS_URL` comes before `BOXOFFICE_NATS_URL`, so that services in one process can
    have users of their own. A variable with `_FILE` behind its name holds the path of a file that holds the value.
    """
    sources = {field.name: named(field.name, environment, of) for field in msgspec.structs.fields(settings)}
    values = {name: _value(source, environment) for name, source in sources.items() if source}
    try:
        return msgspec.convert(values, settings, strict=False)
    except msgspec.ValidationError as error:
        (name, *_), message = explain(str(error), settings)
        source = sources[name] or name
        if source.endswith(FILE):
            raise BadSetting(f"{source}={environment[source]!r}: What is in that file: {message}") from error
        shown = "***" if SECRET & set(name.split("_")) else without_password(values[name])
        raise BadSetting(f"{source}={shown!r}: {message}") from error


def _value(variable: str, environment: Mapping[str, str]) -> str:
    given = environment[variable]
    if not variable.endswith(FILE):
        return given
    try:
        return Path(given).read_text().removesuffix("\n")
    except (OSError, ValueError) as error:  # a path with a null, or a file that is no text
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadSetting(f"{variable}={given!r}: Cannot be read: {reason}") from error
