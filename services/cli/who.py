"""Who the command line is for the system: an API key's holder, or whoever it says where names are believed."""

import os
from collections.abc import Mapping

import httpx
import msgspec

from common.errors import DomainError, Invalid
from common.settings import BadSetting, Settings, load

VARIABLE = "BOXOFFICE_API_KEY"
NOT_LET_IN = (401, 403, 429)


class Refusal(DomainError):
    """What the system answered instead."""


class KeySettings(Settings, frozen=True, kw_only=True):
    """`api_key`: that of whoever uses the command line."""

    api_key: str = ""


class Who:
    """Somebody who asks. Their key is in nothing that is shown."""

    def __init__(self, name: str, key: str = "") -> None:
        self.name = "the holder of the API key" if key else name
        self._key = key
        self._bearer = key or f"dev:{name}"

    @property
    def headers(self) -> dict[str, str]:
        """By which the system knows them."""
        return {"Authorization": f"Bearer {self._bearer}"}

    def refused(self, url: str, status: int, body: bytes, headers: Mapping[str, str]) -> Refusal:
        """Why the system does not let them in, and what to do about it."""
        told = f"{url} does not let {self.name} in: {why(status, body)} {self._mend(status, headers)}"
        return Refusal(told.rstrip())

    def _mend(self, status: int, headers: Mapping[str, str]) -> str:
        if status == 429:
            seconds = headers.get("Retry-After")
            return f"Try again in {seconds} s." if seconds else "Try again later."
        if status == 401:
            if self._key:
                return f"Make a new one at /api/auth/keys, and put it into {VARIABLE}."
            return f"If names are not believed there, put an API key into {VARIABLE}; make one at /api/auth/keys."
        return "Be somebody who may, with --user." if status == 403 and not self._key else ""

    async def refuse(self, answer: httpx.Response) -> None:
        """Raises Refusal for an answer that does not let them in: what an httpx client does with every answer."""
        if answer.status_code in NOT_LET_IN:
            await answer.aread()
            url = str(answer.request.url.copy_with(raw_path=b"/")).rstrip("/")
            raise self.refused(url, answer.status_code, answer.content, answer.headers)


def why(status: int, body: bytes) -> str:
    """What a refusal says."""
    try:
        return str(msgspec.json.decode(body)["detail"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"it answers {status}."


def who_asks(user: str | None, otherwise: str, environment: Mapping[str, str] = os.environ) -> Who:
    """The holder of the API key that the environment has; else `user`, or `otherwise`. Raises Invalid, BadSetting."""
    key = load(KeySettings, {name: value for name, value in environment.items() if name.startswith(VARIABLE)}).api_key
    if not key:
        return Who(user or otherwise)
    if user:
        raise Invalid(f"--user: {VARIABLE} says already who you are: leave out one of them.")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise BadSetting(f"{VARIABLE}: What it holds is no API key; one is visible characters without a blank")
    return Who(otherwise, key)
