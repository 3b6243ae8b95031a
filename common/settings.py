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


PublicUrl = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(https://[^/?#@\s]+|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?)?(?!\n)$",
        description="An address like https://tickets.example.org, without a path; http only on this machine",
    ),
]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service needs to know. A service adds its own in a subclass.

    `auth`: `dev` believes whoever says who they are, `on` only what the identity service gave. `public_url`: under
    which address browsers find the system. `operators`: who may run it: addresses that a provider has verified, or
    names of developers, with commas between them.
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
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def operator_names(self) -> frozenset[str]:
        """Who may run the system."""
        return frozenset(name.strip() for name in self.operators.split(",")) - {""}


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
