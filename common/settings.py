"""Settings from the environment: `BOXOFFICE_<NAME>`, checked and typed."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

import msgspec

from common.explain import explain

PREFIX = "BOXOFFICE_"

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]

DatabaseUrl = Annotated[
    str, msgspec.Meta(pattern="^postgres(ql)?://", description="An address like postgresql://user@host:5432/database")
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


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service needs to know. A service adds its own in a subclass."""

    nats_url: str = "nats://127.0.0.1:4222"
    database_url: DatabaseUrl = "postgresql://postgres@127.0.0.1:5432/postgres"
    host: str = "127.0.0.1"
    port: Port = 8080
    auth: Literal["dev", "off"] = "off"
    replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    connections: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 5_000
    sockets: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    public_url: str = ""
    trusted_proxies: Proxies = ""
    rate_login: RateText = "120/minute"
    rate_orders: RateText = "60/minute"
    rate_batches: RateText = "60/minute"
    rate_changes: RateText = "600/minute"
    rate_reads: RateText = "1200/minute"
    rate_address: RateText = "3000/minute"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def without_password(url: str) -> str:
    """An address as it may be shown."""
    return re.sub(r"//([^:/@]*):[^@/]*@", r"//\1:***@", url)


class BadSetting(Exception):
    """An environment variable that cannot be used; says which, what it holds and what is allowed."""


T = TypeVar("T", bound=Settings)


def load(settings: type[T], environment: Mapping[str, str] = os.environ) -> T:
    """The settings that the environment names, defaults for the rest. Raises BadSetting."""
    names = [field.name for field in msgspec.structs.fields(settings)]
    values = {name: environment[PREFIX + name.upper()] for name in names if PREFIX + name.upper() in environment}
    try:
        return msgspec.convert(values, settings, strict=False)
    except msgspec.ValidationError as error:
        (name, *_), message = explain(str(error), settings)
        shown = "***" if name.endswith("secret") else without_password(values[name])
        raise BadSetting(f"{PREFIX}{name.upper()}={shown!r}: {message}") from error
